// Attention of a layer: which worker takes which queries of which head, and what the kernels need of them.
#include <algorithm>
#include <cmath>

#include "forward.hpp"

namespace vf {

namespace {

// Codes are stored as signed bytes less a shift: less the zero point where that fits, else less 128.
int shift_of(float zero, int bits) {
    int whole = int(zero), highest = (1 << bits) - 1;
    return whole >= highest - 127 && whole <= 128 ? whole : 128;
}

// Where the outputs of a head go, which begin at `row` and `column`: codes for the next layer, or floats where that takes each token's own range.
HeadOutput output_of(const Linear &next, Stream &stream, size_t stride, size_t row, int column) {
    const Quantizer &quantizer = next.input;
    const size_t at = row * stride + size_t(column);
    HeadOutput made;
    if (quantizer.dynamic) made.floats = stream.mixed_floats.data() + at;
    else made.codes = stream.mixed.data() + at;
    made.stride = stride, made.inverse = quantizer.inverse(), made.zero = quantizer.zero, made.highest = quantizer.highest();
    return made;
}

// What a tile of all hallucinated heads takes, in tiles of a computed head: the computed heads' logits, mixes and convolutions, maps and values.
int weight_of_mixed(const Attention &layer) { return layer.hallucinated ? (layer.logit_heads + 1) / 2 + 2 * layer.hallucinated : 0; }

} // namespace

// Work is cut into tiles of queries of all heads, window after window. Hallucinated heads come last and together, since they share logits.
void Forward::attend(const Attention &layer, Stream &stream, Worker &worker, int number, int count) const {
    const int tiles = (layer.tokens_out + kernels_.rows - 1) / kernels_.rows, alone = layer.heads - layer.hallucinated;
    const int64_t units = int64_t(tiles) * alone * layer.windows, all = units + int64_t(tiles) * weight_of_mixed(layer);
    const int64_t begin = all * number / count, stop = all * (number + 1) / count;
    auto rows_of_tiles = [&](int64_t from, int64_t to) {
        return Rows{int(from) * kernels_.rows, std::min(int(to) * kernels_.rows, layer.tokens_out)};
    };
    for (int64_t first = begin; first < std::min(stop, units);) {
        const int window = int(first / tiles / alone), kind = int(first / tiles % alone), tile = int(first % tiles);
        const int64_t end = std::min<int64_t>(tiles, tile + (std::min(stop, units) - first));
        attend_head(layer, window, kind < layer.logit_heads ? kind : kind + layer.hallucinated, stream, worker, rows_of_tiles(tile, end));
        first += end - tile;
    }
    if (!layer.hallucinated || stop <= units) return;
    const int64_t weight = weight_of_mixed(layer);
    const Rows rows = rows_of_tiles(std::max<int64_t>(begin - units, 0) / weight, (stop - units) / weight);
    if (rows.first < rows.last) attend_mixed(layer, stream, worker, rows);
}

void Forward::attend_local(const Attention &layer, int head, Stream &stream, Worker &worker, Rows rows) const {
    const size_t still = size_t(head - layer.moving()), patches = size_t(layer.grid_height) * size_t(layer.grid_width);
    const size_t prefix = size_t(layer.tokens) - patches;
    LocalHead made;
    made.tokens = layer.tokens, made.width = layer.width, made.prefix = int(prefix);
    made.grid_height = layer.grid_height, made.grid_width = layer.grid_width;
    made.kernel_height = layer.local_height, made.kernel_width = layer.local_width, made.apart = layer.local_apart;
    made.kernel = layer.local_kernel.data() + still * size_t(layer.local_height) * size_t(layer.local_width);
    made.scale = layer.local_scale.data() + still * patches, made.shared = layer.local_shared.data() + still * patches;
    made.rows = layer.local_rows.data() + still * prefix * size_t(layer.tokens), made.columns = layer.local_columns.data() + still * patches * prefix;
    made.value_stride = round_up(size_t(layer.width), size_t(kernels_.lanes));
    kernels_.float_values(stream.qkv.data() + layer.value_column(head), layer.first.stride, layer.tokens, layer.width,
                          layer.quantizers.value_scale[size_t(head)], layer.quantizers.value_zero[size_t(head)], worker.float_values.data(),
                          made.value_stride, int(prefix), worker.float_sums.data());
    made.values = worker.float_values.data(), made.value_sums = worker.float_sums.data();
    made.picture = made.values + prefix * made.value_stride;
    if (made.apart > 1) {
        kernels_.smooth(made, worker.between.data(), worker.picture.data());
        made.picture = worker.picture.data();
    }
    made.output = output_of(*layer.proj, stream, layer.mixed_stride, 0, head * layer.width);
    kernels_.local(made, rows.first, rows.last);
}

// What kernels are told of the heads of a window, and the packing of their keys and values into a worker's memory.
class Forward::WindowHeads {
  public:
    WindowHeads(const Forward &forward, const Attention &layer, int window, Stream &stream, Worker &worker)
        : forward_(forward), kernels_(forward.kernels_), layer_(layer), window_(size_t(window)), worker_(worker), stream_(stream),
          first_(window_ * size_t(layer.queries)), query_rows_(stream.qkv.data() + first_ * layer.first.stride),
          key_rows_(layer.reduced() ? stream.keys.data() : query_rows_), key_stride_(layer.reduced() ? layer.keys.stride : layer.first.stride) {}

    ConstantHead constant(int head) const {
        const size_t shared = (layer_.constant_windows == 1 ? 0 : window_) * size_t(layer_.constant_heads);
        const size_t at = (shared + size_t(head - layer_.moving())) * size_t(layer_.queries);
        ConstantHead made;
        made.tokens = layer_.tokens, made.width = layer_.width;
        made.map = layer_.constants.data() + at * layer_.map_stride, made.map_stride = layer_.map_stride;
        made.row_scale = layer_.row_scale.data() + at, made.row_zero = layer_.row_zero.data() + at, made.map_sums = layer_.row_sums.data() + at;
        values(head, 0, made.values, made.value_shift, made.value_scale);
        made.value_sums = worker_.value_sums.data();
        made.output = output(head);
        return made;
    }

    // A head whose map is made anew: its map's grid, values and output. `slot`: the place of its values in the worker's memory.
    Head moving(int index, int slot) const {
        const HeadQuantizers &quantizers = layer_.quantizers;
        const size_t shared = (layer_.frozen_windows == 1 ? 0 : window_) * size_t(layer_.moving()),
                     row = (shared + size_t(index)) * size_t(layer_.queries);
        const bool floats = layer_.float_map(index);
        Head made;
        made.tokens = layer_.tokens, made.width = layer_.width, made.mode = layer_.mode, made.map_bits = layer_.map_bits_of(index);
        made.zero_code = layer_.zero_code_of(index);
        made.map_step = quantizers.map_step[size_t(index)], made.map_zero = quantizers.map_zero[size_t(index)];
        made.log2_step = std::log2(made.map_step);
        if (made.mode == 1 && !floats) levels(index, made);
        if (!layer_.frozen.empty()) made.frozen = layer_.frozen.data() + row * layer_.map_stride, made.frozen_stride = layer_.map_stride;
        if (!layer_.frozen_step.empty()) {
            made.frozen_even = layer_.frozen_even.data() + row * layer_.map_stride,
            made.frozen_odd = layer_.frozen_odd.data() + row * layer_.map_stride;
            made.frozen_even_sums = layer_.frozen_even_sums.data() + row, made.frozen_odd_sums = layer_.frozen_odd_sums.data() + row;
            made.frozen_scale = layer_.frozen_step[size_t(index)] / 128.0f;
        }
        if (!floats || made.frozen_even) values(index, slot, made.values, made.value_shift, made.value_scale);
        if (floats) float_values(index, slot, made);
        made.value_sums = worker_.value_sums.data() + size_t(slot) * forward_.value_channels();
        made.output = output(index);
        return made;
    }

    // Queries and keys; a stored code of keys lacks what is returned: (code - zero point) = stored + shift.
    int add_keys(Head &made, int index, int slot) const {
        const HeadQuantizers &quantizers = layer_.quantizers;
        const int zero = int(quantizers.key_zero[size_t(index)]), taken = shift_of(float(zero), layer_.bits);
        int8_t *packed = worker_.keys.data() + size_t(slot) * forward_.keys_bytes_;
        int32_t *start = worker_.key_start.data() + size_t(slot) * round_up(size_t(layer_.tokens), 64);
        kernels_.pack_keys(key_rows_ + layer_.key_column(index), key_stride_, layer_.tokens, layer_.width, taken, packed,
                           int(quantizers.query_zero[size_t(index)]), start);
        made.keys.columns = int(round_up(size_t(layer_.tokens), size_t(kernels_.lanes))), made.keys.depth4 = depth4(layer_.width);
        made.keys.data = packed, made.keys.start = start;
        choose_sums(made.keys, (1 << layer_.bits) - 1, largest_stored(taken));
        made.tokens = layer_.tokens, made.width = layer_.width;
        made.queries = query_rows_ + layer_.query_column(index), made.query_stride = layer_.first.stride;
        made.logit_scale = quantizers.query_scale[size_t(index)] * quantizers.key_scale[size_t(index)] * layer_.logit_scale * log2e;
        return taken - zero;
    }

  private:
    HeadOutput output(int index) const { return output_of(*layer_.proj, stream_, layer_.mixed_stride, first_, index * layer_.width); }
    int depth4(int depth) const { return int(round_up(size_t(depth), size_t(kernels_.depth)) / 4); }
    int largest_stored(int taken) const { return std::max(taken, (1 << layer_.bits) - 1 - taken); }

    // A level 2^(-k/2) is 2^-7 times a whole number, or that times 1 / sqrt2; one of another base is a multiple of 2^-14.
    void levels(int index, Head &made) const {
        const bool sqrt2 = layer_.quantizers.octave.empty();
        if (!sqrt2) made.octave = layer_.quantizers.octave[size_t(index)];
        made.second_weight = sqrt2 ? 0.70710678118654752f : 1.0f / 128.0f;
        for (int k = 0; k < 16 && k < made.zero_code; k++) {
            if (sqrt2) (k % 2 ? made.second_levels : made.first_levels)[k] = uint8_t(128 >> (k / 2));
            else made.first_levels[k] = uint8_t(units_of(k, made.octave) >> 7), made.second_levels[k] = uint8_t(units_of(k, made.octave) & 127);
        }
    }
    static int units_of(int code, float octave) { return int(std::nearbyint(std::exp2(14.0 - double(code) / double(octave)))); }

    void values(int index, int slot, Packed &packed, int &shift, float &scale) const {
        const float zero = layer_.quantizers.value_zero[size_t(index)];
        const int taken = shift_of(zero, layer_.bits);
        int8_t *const place = worker_.values.data() + size_t(slot) * forward_.values_bytes_;
        kernels_.pack_values(key_rows_ + layer_.value_column(index), key_stride_, layer_.tokens, layer_.width, taken, place,
                             worker_.value_sums.data() + size_t(slot) * forward_.value_channels());
        packed.columns = int(round_up(size_t(layer_.width), size_t(kernels_.lanes))), packed.depth4 = depth4(layer_.tokens);
        packed.data = place;
        choose_sums(packed, index >= layer_.moving() || layer_.mode != 1 ? 255 : 128, largest_stored(taken));
        shift = taken - int(zero), scale = layer_.quantizers.value_scale[size_t(index)];
    }

    void float_values(int index, int slot, Head &made) const {
        float *const place = worker_.float_values.data() + size_t(slot) * forward_.values_bytes_;
        kernels_.float_values(key_rows_ + layer_.value_column(index), key_stride_, layer_.tokens, layer_.width, 1.0f,
                              layer_.quantizers.value_zero[size_t(index)], place, round_up(size_t(layer_.width), size_t(kernels_.lanes)), 0,
                              worker_.float_sums.data());
        made.float_values = place, made.value_scale = layer_.quantizers.value_scale[size_t(index)];
    }

    const Forward &forward_;
    const Kernels &kernels_;
    const Attention &layer_;
    size_t window_;
    Worker &worker_;
    Stream &stream_;
    size_t first_; // rows before the window's
    const uint8_t *query_rows_;
    const uint8_t *key_rows_; // and values
    size_t key_stride_;
};

// One head of one window that is not hallucinated.
void Forward::attend_head(const Attention &layer, int window, int head, Stream &stream, Worker &worker, Rows rows) const {
    if (head >= layer.moving() && layer.local_height) return attend_local(layer, head, stream, worker, rows);
    const WindowHeads heads(*this, layer, window, stream, worker);
    if (head >= layer.moving()) {
        kernels_.constant(heads.constant(head), rows.first, rows.last, worker.scratch);
        return;
    }
    Head made = heads.moving(head, 0);
    heads.add_keys(made, head, 0);
    if (head >= layer.logit_heads - layer.windowed_heads) {
        made.window = layer.window, made.grid_height = layer.grid_height, made.grid_width = layer.grid_width;
        made.prefix = layer.tokens - layer.grid_height * layer.grid_width;
        kernels_.attend_windowed(made, rows.first, rows.last, worker.scratch);
        return;
    }
    if (layer.bias.empty()) {
        kernels_.attend(made, rows.first, rows.last, worker.scratch);
        return;
    }
    const size_t map = size_t(layer.queries) * layer.map_stride;
    made.bias = layer.bias.data() + (layer.bias.size() > map ? size_t(head) * map : 0), made.bias_stride = layer.map_stride;
    const int mask = layer.mask_of[size_t(window)];
    if (mask >= 0) made.mask = layer.masks.data() + size_t(mask) * map;
    kernels_.attend_biased(made, rows.first, rows.last, worker.scratch);
}

// All hallucinated heads at once: the logits that they are mixed of are taken once.
void Forward::attend_mixed(const Attention &layer, Stream &stream, Worker &worker, Rows rows) const {
    const WindowHeads heads(*this, layer, 0, stream, worker);
    for (int index = 0; index < layer.logit_heads; index++) {
        worker.computed[size_t(index)] = Head();
        worker.key_shift[size_t(index)] = int32_t(heads.add_keys(worker.computed[size_t(index)], index, index));
        worker.query_zero[size_t(index)] = int32_t(layer.quantizers.query_zero[size_t(index)]);
    }
    for (int index = 0; index < layer.hallucinated; index++) {
        worker.hallucinated[size_t(index)] = heads.moving(layer.logit_heads + index, index);
        worker.mix_bias[size_t(index)] = layer.mix_bias.empty() ? 0.0f : layer.mix_bias[size_t(index)] * log2e;
    }
    MixedHeads mixed;
    mixed.queries = layer.queries, mixed.tokens = layer.tokens, mixed.logit_heads = layer.logit_heads, mixed.count = layer.hallucinated;
    mixed.computed = worker.computed.data(), mixed.query_zero = worker.query_zero.data(), mixed.key_shift = worker.key_shift.data();
    mixed.made = worker.hallucinated.data(), mixed.mix = layer.mix.data(), mixed.mix_bias = worker.mix_bias.data();
    mixed.kernel = layer.kernel, mixed.kernel_first = layer.kernel_first, mixed.convolution = layer.convolution.data();
    kernels_.attend_mixed(mixed, rows.first, rows.last, worker.scratch);
}

} // namespace vf
