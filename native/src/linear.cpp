// The weights of a linear layer in the order of a processor.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "error.hpp"
#include "layers.hpp"

namespace vf {

namespace {

constexpr int64_t most = INT32_MAX;

// Weights [outputs][inputs] as signed bytes, into panels.
void fill_panels(Linear &made, const Array<int16_t> &weights, const Kernels &kernels) {
    int depth4 = (made.inputs + 3) / 4;
    for (int column = 0; column < made.outputs; column++) {
        int panel = column / kernels.panel * kernels.panel;
        int wide = std::min(kernels.panel, made.columns - panel);
        int8_t *place = made.weights.data() + size_t(panel) * size_t(depth4) * 4 + size_t(column - panel) * 4;
        const int16_t *row = weights.data() + size_t(column) * size_t(made.inputs);
        for (int k = 0; k < made.inputs; k++) place[size_t(k / 4) * size_t(wide) * 4 + size_t(k % 4)] = int8_t(row[k]);
    }
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
    size_t columns = size_t(made.columns), depth4 = (size_t(inputs) + 3) / 4;
    made.weights.resize(columns * depth4 * 4);
    made.start.resize(columns), made.column_sums.resize(columns), made.column_shift.resize(columns);
    made.scale.resize(columns), made.offset.resize(columns);
    Array<int16_t> weights(size_t(outputs) * size_t(inputs));
    int x_max = (1 << input.bits) - 1, w_max = 0;
    int64_t x_zero = input.dynamic ? 0 : int64_t(input.zero);
    for (size_t j = 0; j < size_t(outputs); j++) {
        const uint8_t *row = codes.data() + j * size_t(inputs);
        int64_t w_zero = int64_t(zero[j]);
        auto [low, high] = std::minmax_element(row, row + inputs);
        bool fits = *low - w_zero >= -128 && *high - w_zero <= 127;
        int64_t taken = fits ? w_zero : 128, shift = w_zero - taken, sum = 0, absolute = 0;
        for (size_t k = 0; k < size_t(inputs); k++) {
            int16_t weight = int16_t(row[k] - taken);
            weights[j * size_t(inputs) + k] = weight;
            sum += weight, absolute += std::abs(int(weight)), w_max = std::max(w_max, std::abs(int(weight)));
        }
        // (x - x_zero)(w - shift) = x w - shift x - x_zero w + x_zero shift, all of it within 32 bits.
        int64_t start = -x_zero * sum + int64_t(inputs) * x_zero * shift, sums = sum - int64_t(inputs) * shift;
        int64_t bound = std::abs(start) + x_max * absolute + std::abs(shift) * x_max * inputs + (input.dynamic ? 255 * std::abs(sums) : 0);
        if (bound > most) fail("the model file is damaged: sums of a layer with %d inputs do not fit 32 bits; export it again", inputs);
        made.start[j] = int32_t(start), made.column_sums[j] = int32_t(sums), made.column_shift[j] = int32_t(shift);
        made.shifted = made.shifted || shift != 0;
        made.scale[j] = scale[j] * (input.dynamic ? 1.0f : input.scale);
        made.offset[j] = bias.empty() ? 0.0f : bias[j];
    }
    fill_panels(made, weights, kernels);
    made.packed.columns = made.columns, made.packed.depth4 = int(depth4);
    made.packed.data = made.weights.data(), made.packed.start = made.start.data();
    choose_sums(made.packed, x_max, w_max);
    return made;
}

} // namespace vf
