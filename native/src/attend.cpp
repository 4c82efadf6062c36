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

} // namespace

// Work is cut into tiles of queries of all heads, window after window; a hallucinated head counts as all of them together.
void Forward::attend(const Attention &layer, Stream &stream, Worker &worker, int number, int count) const {
    int tiles = (layer.tokens_out + kernels_.rows - 1) / kernels_.rows;
    int kinds = layer.heads - layer.hallucinated + (layer.hallucinated ? 1 : 0);
    int64_t units = int64_t(tiles) * kinds * layer.windows;
    int64_t first = units * number / count, last = units * (number + 1) / count;
    while (first < last) {
        int window = int(first / tiles / kinds), kind = int(first / tiles % kinds), tile = int(first % tiles);
        int end = int(std::min<int64_t>(tiles, tile + (last - first)));
        Rows rows = {tile * kernels_.rows, std::min(end * kernels_.rows, layer.tokens_out)};
        int head = kind < layer.logit_heads || !layer.hallucinated ? kind : kind - 1 + layer.hallucinated;
        bool mixed = layer.hallucinated && kind == layer.logit_heads;
        attend_head(layer, window, mixed ? -1 : head, stream, worker, rows);
        first += end - tile;
    }
}

void Forward::attend_local(const Attention &layer, int head, Stream &stream, Worker &worker, Rows rows) const {
    const size_t still = size_t(head - layer.moving()), patches = size_t(layer.grid_height) * size_t(layer.grid_width);
    const size_t prefix = size_t(layer.tokens) - patches;
    LocalHead made;
    made.tokens = layer.tokens, made.width = layer.width, made.prefix = int(prefix);
    made.grid_height = layer.grid_height, made.grid_width = layer.grid_width;
    made.kernel_height = layer.local_height, made.kernel_width = layer.local_width;
    made.kernel = layer.local_kernel.data() + still * size_t(layer.local_height) * size_t(layer.local_width);
    made.scale = layer.local_scale.data() + still * patches, made.shared = layer.local_shared.data() + still * patches;
    made.rows = layer.local_rows.data() + still * prefix * size_t(layer.tokens), made.columns = layer.local_columns.data() + still * patches * prefix;
    made.value_stride = round_up(size_t(layer.width), size_t(kernels_.lanes));
    kernels_.float_values(stream.qkv.data() + layer.value_column(head), layer.first.stride, layer.tokens, layer.width,
                          layer.quantizers.value_scale[size_t(head)], layer.quantizers.value_zero[size_t(head)], worker.float_values.data(),
                          made.value_stride, int(prefix), worker.float_sums.data());
    made.values = worker.float_values.data(), made.value_sums = worker.float_sums.data();
    made.output = output_of(*layer.proj, stream, layer.mixed_stride, 0, head * layer.width);
    kernels_.local(made, rows.first, rows.last);
}

// One head, or all hallucinated ones (-1), of one window.
void Forward::attend_head(const Attention &layer, int window, int head, Stream &stream, Worker &worker, Rows rows) const {
    const HeadQuantizers &quantizers = layer.quantizers;
    const int tokens = layer.tokens;
    const size_t queries = size_t(layer.queries), first = size_t(window) * queries; // rows before the window's
    const uint8_t *const query_rows = stream.qkv.data() + first * layer.first.stride;
    const uint8_t *const key_rows = layer.reduced() ? stream.keys.data() : query_rows; // and values
    const size_t key_stride = layer.reduced() ? layer.keys.stride : layer.first.stride;
    auto output = [&](int index) { return output_of(*layer.proj, stream, layer.mixed_stride, first, index * layer.width); };
    const size_t columns = round_up(size_t(tokens), 64);
    auto values_of = [&](int index, Packed &packed, int &shift, float &scale, const int16_t **wide) {
        const uint8_t *codes = key_rows + layer.value_column(index);
        float zero = quantizers.value_zero[size_t(index)];
        int taken = shift_of(zero, layer.bits);
        shift = taken - int(zero), scale = quantizers.value_scale[size_t(index)];
        if (wide) {
            kernels_.pack_wide_values(codes, key_stride, tokens, layer.width, taken, worker.wide_values.data());
            *wide = worker.wide_values.data();
            return;
        }
        kernels_.pack_values(codes, key_stride, tokens, layer.width, taken, worker.values.data(), worker.value_sums.data());
        packed.columns = int(round_up(size_t(layer.width), size_t(kernels_.lanes))), packed.depth4 = (tokens + 3) / 4;
        packed.data = worker.values.data();
        choose_sums(packed, index >= layer.moving() || layer.mode != 1 ? 255 : 128, std::max(taken, (1 << layer.bits) - 1 - taken));
    };
    if (head >= layer.moving() && layer.local_height) return attend_local(layer, head, stream, worker, rows);
    if (head >= layer.moving()) {
        const size_t shared = size_t(layer.constant_windows == 1 ? 0 : window) * size_t(layer.constant_heads);
        const size_t at = (shared + size_t(head - layer.moving())) * queries;
        ConstantHead made;
        made.tokens = tokens, made.width = layer.width;
        made.map = layer.constants.data() + at * layer.map_stride, made.map_stride = layer.map_stride;
        made.row_scale = layer.row_scale.data() + at, made.row_zero = layer.row_zero.data() + at, made.map_sums = layer.row_sums.data() + at;
        values_of(head, made.values, made.value_shift, made.value_scale, nullptr);
        made.value_sums = worker.value_sums.data();
        made.output = output(head);
        kernels_.constant(made, rows.first, rows.last, worker.scratch);
        return;
    }
    const bool wide = layer.mode == 1 && layer.map_bits > 4;
    auto moving = [&](int index) {
        const size_t shared = size_t(layer.frozen_windows == 1 ? 0 : window) * size_t(layer.moving());
        Head made;
        made.tokens = tokens, made.width = layer.width, made.mode = layer.mode, made.map_bits = layer.map_bits, made.zero_code = layer.zero_code;
        made.map_step = quantizers.map_step[size_t(index)], made.map_zero = quantizers.map_zero[size_t(index)];
        made.log2_step = std::log2(made.map_step);
        if (!layer.frozen.empty())
            made.frozen = layer.frozen.data() + (shared + size_t(index)) * queries * layer.map_stride, made.frozen_stride = layer.map_stride;
        if (!layer.frozen_step.empty()) {
            const size_t row = (shared + size_t(index)) * queries, at = row * layer.map_stride;
            made.frozen_even = layer.frozen_even.data() + at, made.frozen_odd = layer.frozen_odd.data() + at;
            made.frozen_even_sums = layer.frozen_even_sums.data() + row, made.frozen_odd_sums = layer.frozen_odd_sums.data() + row;
            made.frozen_scale = layer.frozen_step[size_t(index)] / 128.0f;
        }
        if (!wide || made.frozen_even) values_of(index, made.values, made.value_shift, made.value_scale, nullptr);
        if (wide) values_of(index, made.values, made.value_shift, made.value_scale, &made.wide_values);
        made.value_sums = worker.value_sums.data();
        // Weights of a row add up to at most 1.19 by rounding, and as much again where constants are merged in: with numbers of at most
        // wide_scale their sums times values of at most 256 stay below 2^30.
        if (wide) made.wide_scale = std::min(16384.0f, std::exp2(std::floor(std::log2(float(1 << 30) * made.map_step / (2.4f * 256.0f)))));
        made.output = output(index);
        return made;
    };
    auto add_keys = [&](Head &made, int index, int slot, int &shift) {
        int zero = int(quantizers.key_zero[size_t(index)]), taken = shift_of(float(zero), layer.bits);
        int8_t *packed = worker.keys.data() + size_t(slot) * keys_bytes_;
        int32_t *start = worker.key_start.data() + size_t(slot) * columns;
        kernels_.pack_keys(key_rows + layer.key_column(index), key_stride, tokens, layer.width, taken, packed,
                           int(quantizers.query_zero[size_t(index)]), start);
        made.keys.columns = int(round_up(size_t(tokens), size_t(kernels_.lanes))), made.keys.depth4 = (layer.width + 3) / 4;
        made.keys.data = packed, made.keys.start = start;
        choose_sums(made.keys, (1 << layer.bits) - 1, std::max(taken, (1 << layer.bits) - 1 - taken));
        made.tokens = tokens, made.width = layer.width;
        made.queries = query_rows + layer.query_column(index), made.query_stride = layer.first.stride;
        made.logit_scale = quantizers.query_scale[size_t(index)] * quantizers.key_scale[size_t(index)] * layer.logit_scale * log2e;
        shift = taken - zero;
    };
    int shift;
    if (head >= 0) {
        Head made = moving(head);
        add_keys(made, head, 0, shift);
        if (layer.bias.empty()) {
            kernels_.attend(made, rows.first, rows.last, worker.scratch);
            return;
        }
        made.bias = layer.bias.data() + size_t(head) * queries * layer.map_stride, made.bias_stride = layer.map_stride;
        const int mask = layer.mask_of[size_t(window)];
        if (mask >= 0) made.mask = layer.masks.data() + size_t(mask) * queries * layer.map_stride;
        kernels_.attend_biased(made, rows.first, rows.last, worker.scratch);
        return;
    }
    std::vector<Head> &computed = worker.computed;
    Array<int32_t> &query_zero = worker.query_zero, &key_shift = worker.key_shift;
    for (int index = 0; index < layer.logit_heads; index++) {
        computed[size_t(index)] = Head();
        add_keys(computed[size_t(index)], index, index, key_shift[size_t(index)]);
        query_zero[size_t(index)] = int32_t(quantizers.query_zero[size_t(index)]);
    }
    for (int index = 0; index < layer.hallucinated; index++) { // one by one, since values are packed for one head at a time
        Head made = moving(layer.logit_heads + index);
        const size_t at = size_t(index);
        float bias = layer.mix_bias.empty() ? 0.0f : layer.mix_bias[at] * log2e;
        MixedHeads mixed;
        mixed.queries = layer.queries, mixed.tokens = tokens, mixed.logit_heads = layer.logit_heads, mixed.count = 1;
        mixed.computed = computed.data(), mixed.query_zero = query_zero.data(), mixed.key_shift = key_shift.data(), mixed.made = &made;
        mixed.mix = layer.mix.data() + at * size_t(layer.logit_heads), mixed.mix_bias = &bias;
        mixed.kernel = layer.kernel, mixed.kernel_first = layer.kernel_first;
        mixed.convolution = layer.convolution.data() + at * size_t(layer.kernel * layer.kernel);
        kernels_.attend_mixed(mixed, rows.first, rows.last, worker.scratch);
    }
}

} // namespace vf
