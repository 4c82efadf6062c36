// The weights of a linear layer in the order of a processor.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "error.hpp"
#include "layers.hpp"

namespace vf {

namespace {

constexpr int64_t most = INT32_MAX;
// Bytes of a matrix that is kept in 4 bits where its codes have no more. Smaller ones come from the caches fast enough: on AMX DeiT-Small's take 8 % longer so.
constexpr size_t least_nibbles = size_t(1) << 20;

// One column of weights, codes less `taken`, into its panel: four steps of the sum together.
void fill_column(Linear &made, int column, const uint8_t *codes, int taken, const Kernels &kernels) {
    const int panel = column / kernels.panel * kernels.panel;
    const size_t wide = size_t(std::min(kernels.panel, made.columns - panel)), depth4 = round_up(size_t(made.inputs), size_t(kernels.depth)) / 4;
    int8_t *place = made.weights.data() + size_t(panel) * depth4 * 4 + size_t(column - panel) * 4;
    int k = 0;
    for (; k + 4 <= made.inputs; k += 4, place += wide * 4)
        for (int i = 0; i < 4; i++) place[i] = int8_t(codes[k + i] - taken);
    for (int i = 0; k < made.inputs; k++, i++) place[i] = int8_t(codes[k] - taken);
}

// Two codes a byte: a model's large matrices are read from beyond the caches for every picture, and half of the bytes take half of the time.
void pack_nibbles(Linear &made, const Array<float> &zero, const Kernels &kernels) {
    const size_t vector = size_t(kernels.lanes) * 4, panel = size_t(kernels.panel) / size_t(kernels.lanes), depth4 = size_t(made.packed.depth4);
    const size_t columns = size_t(made.columns) / size_t(kernels.lanes), stride = (depth4 * panel + 1) / 2 * vector;
    made.zeros.resize(columns * vector), made.nibbles.resize((columns + panel - 1) / panel * stride);
    for (size_t j = 0; j < zero.size(); j++) std::fill_n(made.zeros.data() + 4 * j, 4, int8_t(zero[j]));
    for (size_t first = 0; first < columns; first += panel) {
        const size_t wide = std::min(panel, columns - first);
        const int8_t *from = made.weights.data() + first * vector * depth4;
        uint8_t *to = made.nibbles.data() + first / panel * stride;
        for (size_t n = 0; n < depth4 * wide; n++)
            for (size_t i = 0; i < vector; i++) {
                const int code = from[n * vector + i] + made.zeros[(first + n % wide) * vector + i];
                to[n / 2 * vector + i] = uint8_t(to[n / 2 * vector + i] | code << (n % 2 ? 4 : 0));
            }
    }
    Array<int8_t>().swap(made.weights);
}

} // namespace

void choose_sums(Packed &packed, int x_max, int w_max) {
    int pair = 2 * x_max * std::max(w_max, 1);
    packed.sums = pair > INT16_MAX ? Sums::split : INT16_MAX / pair >= 4 ? Sums::chunked : Sums::direct;
    packed.chunk = std::max(1, INT16_MAX / pair);
}

Linear make_linear(int inputs, int outputs, const Quantizer &input, const Array<uint8_t> &codes, const Array<float> &scale, const Array<float> &zero,
                   const Array<float> &bias, const Kernels &kernels) {
    Linear made;
    made.inputs = inputs, made.outputs = outputs, made.input = input;
    made.columns = int(round_up(size_t(outputs), size_t(kernels.lanes)));
    size_t columns = size_t(made.columns), depth4 = round_up(size_t(inputs), size_t(kernels.depth)) / 4;
    made.weights.resize(columns * depth4 * 4);
    made.start.resize(columns), made.column_sums.resize(columns), made.column_shift.resize(columns);
    made.scale.resize(columns), made.offset.resize(columns);
    const int x_max = (1 << input.bits) - 1;
    const int64_t depth = inputs, x_zero = input.dynamic ? 0 : int64_t(input.zero);
    int w_max = 0;
    bool small = true; // codes and zero points of 4 bits
    for (size_t j = 0; j < size_t(outputs); j++) {
        const uint8_t *row = codes.data() + j * size_t(inputs);
        const int64_t w_zero = int64_t(zero[j]);
        uint8_t low = 255, high = 0;
        int32_t code_sum = 0;
        for (int k = 0; k < inputs; k++) low = std::min(low, row[k]), high = std::max(high, row[k]), code_sum += row[k];
        const bool fits = low - w_zero >= -128 && high - w_zero <= 127;
        const int64_t taken = fits ? w_zero : 128, shift = w_zero - taken, sum = code_sum - depth * taken;
        const int64_t largest = std::max(std::abs(low - taken), std::abs(high - taken));
        w_max = std::max(w_max, int(largest));
        fill_column(made, int(j), row, int(taken), kernels);
        // (x - x_zero)(w - shift) = x w - shift x - x_zero w + x_zero shift, all of it within 32 bits.
        const int64_t start = -x_zero * sum + depth * x_zero * shift, sums = sum - depth * shift;
        const int64_t bound = std::abs(start) + depth * x_max * (largest + std::abs(shift)) + (input.dynamic ? 255 * std::abs(sums) : 0);
        if (bound > most) fail("the model file is damaged: sums of a layer with %d inputs do not fit 32 bits; export it again", inputs);
        small = small && high <= 15 && w_zero >= 0 && w_zero <= 15;
        made.start[j] = int32_t(start), made.column_sums[j] = int32_t(sums), made.column_shift[j] = pair_of_shift(int32_t(shift));
        made.shifted = made.shifted || shift != 0;
        if (shift != 0 && depth * x_max > most_summed) fail("the model file is damaged: a layer with %d inputs is too wide; export it again", inputs);
        made.scale[j] = scale[j] * (input.dynamic ? 1.0f : input.scale);
        made.offset[j] = bias.empty() ? 0.0f : bias[j];
    }
    made.packed.columns = made.columns, made.packed.depth4 = int(depth4);
    choose_sums(made.packed, x_max, w_max);
    if (small && made.bytes() >= least_nibbles) pack_nibbles(made, zero, kernels);
    made.point();
    return made;
}

} // namespace vf
