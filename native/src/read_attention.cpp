// Attention layers of a model file.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "error.hpp"
#include "reader.hpp"

namespace vf {

void Reader::attention(int layer, LayerKind kind) {
    const bool windowed = kind == layer_window_attention;
    Attention made;
    const int channels = stage().channels;
    made.layer = layer;
    made.queries = made.tokens = stage().tokens;
    if (windowed) windows(layer, made);
    made.norm = norm_of(layer, 0, channels);
    made.heads = integer(layer, 3, 1, most_heads, "heads"), made.width = integer(layer, 4, 1, most_width, "head width");
    made.logit_heads = integer(layer, 5, 0, made.heads, "heads with queries");
    made.tokens_out = integer(layer, 6, 1, made.queries, "tokens");
    bits(layer, made);
    made.constant_heads = integer(layer, 11, 0, made.heads, "frozen heads");
    made.hallucinated = integer(layer, 12, 0, made.heads, "hallucinated heads");
    if (made.logit_heads + made.constant_heads + made.hallucinated != made.heads || (made.hallucinated && (!made.logit_heads || windowed)))
        fail("the model file is damaged: the heads of layer %d do not add up; export it again", layer);
    const int inner = made.heads * made.width, still = (made.logit_heads + made.heads) * made.width;
    if (kind == layer_reduced_attention) reduction(layer, made);
    else made.first = projection(made.norm, linear_of(layer, 1, channels, still + made.logit_heads * made.width));
    made.proj = linear_of(layer, 2, inner, channels), made.mixed_stride = stride_of(inner);
    made.logit_scale = file_.number(layer, 0, "scale of logits");
    check_scale(made.logit_scale);
    quantizers(layer, made);
    fold(made);
    maps(layer, made);
    if (windowed) bias(layer, made);
    if (kind == layer_attention) near(layer, made);
    add_step(layer_attention, made_.attention.size());
    made_.attention.push_back(std::move(made));
}

// Bits of queries, keys, values and maps, of all heads or of each.
void Reader::bits(int layer, Attention &made) {
    made.mode = integer(layer, 7, 0, 2, "map mode");
    if (file_.has(layer, 22)) {
        for (float each : file_.floats(layer, 22, {uint64_t(made.heads)})) {
            const int whole = each >= 2 && each <= 8 ? int(each) : 0;
            if (!whole || float(whole) != each)
                fail("the model file is damaged: a head of layer %d has %g bits; export it again", layer, double(each));
            made.head_bits.push_back(whole);
        }
        made.bits = made.map_bits = *std::max_element(made.head_bits.begin(), made.head_bits.end());
        made.zero_code = (1 << made.map_bits) - 1 + integer(layer, 9, 0, 1, "zero code");
        return;
    }
    made.map_bits = integer(layer, 8, 2, 8, "map bits"), made.bits = integer(layer, 10, 2, 8, "bits");
    made.zero_code = integer(layer, 9, 0, 256, "zero code");
    if (made.mode == 1 && (made.zero_code < (1 << made.map_bits) - 1 || made.zero_code > 1 << made.map_bits))
        fail("the model file is damaged: layer %d has a zero code that its bits do not have; export it again", layer);
}

void Reader::quantizers(int layer, Attention &made) {
    HeadQuantizers &found = made.quantizers;
    uint64_t heads = uint64_t(made.logit_heads), moving = uint64_t(made.moving());
    auto scales = [&](Array<float> &values, int slot, uint64_t count, bool zero) {
        values = file_.one_or(layer, slot, count);
        for (float value : values) zero ? check_zero(value) : check_scale(value);
    };
    if (heads) {
        scales(found.query_scale, 0, heads, false), scales(found.query_zero, 1, heads, true);
        scales(found.key_scale, 2, heads, false), scales(found.key_zero, 3, heads, true);
    }
    scales(found.value_scale, 4, uint64_t(made.heads), false), scales(found.value_zero, 5, uint64_t(made.heads), true);
    found.map_step.resize(moving, 1.0f), found.map_zero.resize(moving, 0.0f);
    if (moving && made.mode != 0) scales(found.map_step, 6, moving, false);
    if (moving && made.mode == 1 && file_.has(layer, 23)) {
        found.octave = file_.floats(layer, 23, {moving});
        for (uint64_t head = 0; head < moving; head++)
            if (!(found.octave[head] >= 0.5f && found.octave[head] <= 4.0f) || made.map_bits_of(int(head)) > 4)
                fail("the model file is damaged: layer %d has maps on a grid that is not known; export it again", layer);
    }
    if (moving && made.mode == 2 && file_.has(layer, 7)) scales(found.map_zero, 7, moving, true);
    // A map's code times a value's less its zero point, added up over all keys, stays within 32 bits: 255 * 255 * 33,025 where both have 8 bits.
    const float highest = float((1 << made.bits) - 1);
    for (float zero : found.value_zero)
        if (255.0 * made.tokens * double(std::max(std::fabs(zero), std::fabs(highest - zero))) > double(INT32_MAX))
            fail("the model file is damaged: sums over the %d keys of layer %d do not fit 32 bits; export it again", made.tokens, layer);
    // A logit is at most width * 255 * 128 and what the zero point of queries takes off; it stays far from what is no key.
    for (float zero : found.query_zero)
        if (double(made.width) * 128.0 * (255.0 + std::fabs(zero)) >= double(1 << 29))
            fail("the model file is damaged: logits of layer %d do not fit; export it again", layer);
}

// The products' scales and offsets with the quantizers of queries, keys and values in them.
void Reader::fold(Attention &made) {
    auto part = [&](Projection &of, int column, int head, float scale, float zero) {
        const int own = made.head_bits.empty() ? made.bits : made.head_bits[size_t(head)];
        if (own < made.bits) of.limits.push_back({column, made.width, uint8_t((1 << own) - 1)});
        for (int c = column; c < column + made.width; c++) {
            of.scale[size_t(c)] /= scale;
            of.offset[size_t(c)] = of.offset[size_t(c)] / scale + zero;
        }
    };
    const HeadQuantizers &found = made.quantizers;
    Projection &keys = made.reduced() ? made.keys : made.first;
    for (int head = 0; head < made.logit_heads; head++) {
        part(made.first, made.query_column(head), head, found.query_scale[size_t(head)], found.query_zero[size_t(head)]);
        part(keys, made.key_column(head), head, found.key_scale[size_t(head)], found.key_zero[size_t(head)]);
    }
    for (int head = 0; head < made.heads; head++)
        part(keys, made.value_column(head), head, found.value_scale[size_t(head)], found.value_zero[size_t(head)]);
}

// Keys and values of fewer tokens than queries: those of patches, or of the tokens themselves, by a product of their own.
void Reader::reduction(int layer, Attention &made) {
    const Stage &grid = stage();
    if (grid.prefix) fail("the model file is damaged: layer %d makes keys of patches and has prefix tokens; export it again", layer);
    if (made.logit_heads) made.first = projection(made.norm, linear_of(layer, 1, grid.channels, made.logit_heads * made.width));
    const Norm *norm = made.norm;
    if (names(layer, 20)) {
        made.reduction_height = integer(layer, 22, 1, grid.height, "patch height"),
        made.reduction_width = integer(layer, 23, 1, grid.width, "patch width");
        const int64_t inputs = int64_t(made.reduction_height) * made.reduction_width * grid.channels;
        if (inputs > most_channels) fail("the model file is damaged: patches of layer %d are too large; export it again", layer);
        made.reduction = linear_of(layer, 20, int(inputs), grid.channels);
        norm = norm_of(layer, 21, grid.channels);
        made.tokens = (grid.height / made.reduction_height) * (grid.width / made.reduction_width);
    }
    made.keys = projection(norm, linear_of(layer, 19, grid.channels, (made.logit_heads + made.heads) * made.width));
}

// Maps [maps][queries][tokens] with room behind every row.
Array<uint8_t> Reader::padded_maps(int layer, int slot, int count, const Attention &made, uint8_t fill) {
    const size_t tokens = size_t(made.tokens), rows = size_t(count) * size_t(made.queries);
    int bits;
    Array<uint8_t> codes = file_.codes(layer, slot, {uint64_t(count), uint64_t(made.queries), tokens}, bits);
    if (bits != 8) fail("the model file is damaged: maps of layer %d are no 8-bit codes; export it again", layer);
    Array<uint8_t> padded((rows + rows_behind) * made.map_stride, fill); // kernels read whole tiles
    for (size_t row = 0; row < rows; row++) std::copy_n(codes.data() + row * tokens, tokens, padded.data() + row * made.map_stride);
    made_.bytes += padded.size();
    return padded;
}

void Reader::maps(int layer, Attention &made) {
    made.map_stride = round_up(size_t(made.tokens), alignment);
    if (file_.has(layer, 8)) {
        made.frozen = padded_maps(layer, 8, made.frozen_windows * made.moving(), made, 255);
        if (file_.has(layer, 20)) frozen_apart(layer, made);
        else if (made.mode != 1) fail("the model file is damaged: layer %d has frozen entries without a log grid; export it again", layer);
    }
    const int still = made.constant_heads;
    if (still && file_.has(layer, 15)) local(layer, made);
    else if (still) {
        const uint64_t count = uint64_t(made.constant_windows) * uint64_t(still), queries = uint64_t(made.queries);
        made.constants = padded_maps(layer, 9, int(count), made, 0);
        made.row_scale = file_.floats(layer, 10, {count, queries}), made.row_zero = file_.floats(layer, 11, {count, queries});
        made.row_sums.resize(count * queries);
        for (size_t row = 0; row < count * queries; row++)
            for (size_t key = 0; key < size_t(made.tokens); key++) made.row_sums[row] += made.constants[row * made.map_stride + key];
    }
    if (made.hallucinated) hallucination(layer, made);
}

// Frozen entries with a grid of their own: levels 2^(-code / 2) as 2^-7 times whole numbers, even and odd codes apart. What stays in `frozen` is zero.
void Reader::frozen_apart(int layer, Attention &made) {
    const size_t tokens = size_t(made.tokens), rows = size_t(made.frozen_windows) * size_t(made.moving()) * size_t(made.queries);
    made.frozen_step = file_.floats(layer, 20, {uint64_t(made.moving())});
    for (float step : made.frozen_step) check_scale(step);
    made.frozen_even.resize(made.frozen.size()), made.frozen_odd.resize(made.frozen.size());
    made.frozen_even_sums.resize(rows), made.frozen_odd_sums.resize(rows);
    for (size_t row = 0; row < rows; row++) {
        const int head = int(row / size_t(made.queries) % size_t(made.moving()));
        const uint8_t zero = made.mode == 1 && made.map_bits_of(head) > 4 ? 254 : 16;
        for (size_t at = row * made.map_stride; at < row * made.map_stride + tokens; at++) {
            const uint8_t code = made.frozen[at];
            if (code == 255) continue;
            if (code > 16) fail("the model file is damaged: layer %d has frozen entries that its grid does not have; export it again", layer);
            const uint8_t level = code < 16 ? uint8_t(128 >> (code / 2)) : uint8_t(0);
            (code % 2 ? made.frozen_odd : made.frozen_even)[at] = level;
            (code % 2 ? made.frozen_odd_sums : made.frozen_even_sums)[row] += level;
            made.frozen[at] = zero;
        }
    }
    made_.bytes += 2 * made.frozen.size() + 8 * rows;
}

void Reader::hallucination(int layer, Attention &made) {
    uint64_t drawn = uint64_t(made.hallucinated);
    made.mix = file_.floats(layer, 12, {drawn, uint64_t(made.logit_heads)});
    if (file_.has(layer, 13)) made.mix_bias = file_.floats(layer, 13, {drawn});
    made.kernel = integer(layer, 13, 0, 5, "kernel side");
    made.kernel_first = integer(layer, 14, 0, made.tokens, "first token of the convolution");
    if (made.kernel != 0 && made.kernel != 3 && made.kernel != 5)
        fail("the model file is damaged: layer %d has a convolution of side %d; export it again", layer, made.kernel);
    if (made.kernel) made.convolution = file_.floats(layer, 14, {drawn, uint64_t(made.kernel), uint64_t(made.kernel)});
}

// Constant maps that are kernels over the patch grid.
void Reader::local(int layer, Attention &made) {
    const int patches = made.tokens - stage().prefix;
    if (!made.order.empty() || made.reduced()) fail("the model file is damaged: layer %d has kernels over no grid of tokens; export it again", layer);
    made.local_height = integer(layer, 15, 1, 255, "kernel height"), made.local_width = integer(layer, 16, 1, 255, "kernel width");
    made.grid_height = integer(layer, 17, 1, patches, "grid height"), made.grid_width = integer(layer, 18, 1, patches, "grid width");
    // As far as a grid of one patch may have grown; so what is smoothed has at most nine times the grid's patches.
    made.local_apart = std::max(1, integer(layer, 21, 0, std::min(made.grid_height, made.grid_width), "distance of taps"));
    if (made.grid_height * int64_t(made.grid_width) != patches || made.local_height % 2 == 0 || made.local_width % 2 == 0)
        fail("the model file is damaged: kernels of layer %d do not fit its patches; export it again", layer);
    const uint64_t heads = uint64_t(made.constant_heads), count = uint64_t(patches), prefix = uint64_t(stage().prefix);
    made.local_kernel = file_.floats(layer, 15, {heads, uint64_t(made.local_height), uint64_t(made.local_width)});
    made.local_scale = file_.floats(layer, 16, {heads, count}), made.local_shared = file_.floats(layer, 17, {heads, count});
    if (prefix) {
        made.local_rows = file_.floats(layer, 18, {heads, prefix, uint64_t(made.tokens)});
        made.local_columns = file_.floats(layer, 19, {heads, count, prefix});
    }
}

// Heads that look at a window of the patch grid.
void Reader::near(int layer, Attention &made) {
    made.windowed_heads = integer(layer, 19, 0, made.logit_heads, "windowed heads");
    if (made.windowed_heads == 0) return;
    const int patches = made.tokens - stage().prefix;
    made.grid_height = integer(layer, 17, 1, patches, "grid height"), made.grid_width = integer(layer, 18, 1, patches, "grid width");
    made.window = integer(layer, 20, 1, 1 << 20, "side of the window");
    bool zero = false;
    for (float each : made.quantizers.map_zero) zero = zero || each != 0;
    if (made.grid_height * int64_t(made.grid_width) != patches || made.window % 2 == 0 || made.hallucinated || !made.frozen.empty() || zero)
        fail("the model file is damaged: windowed heads of layer %d do not fit it; export it again", layer);
}

// The windows of a layer over the grid of its stage, and how it is shifted.
void Reader::windows(int layer, Attention &made) {
    const Stage &grid = stage();
    if (grid.prefix) fail("the model file is damaged: layer %d has windows and prefix tokens; export it again", layer);
    Windows found;
    found.height = integer(layer, 19, 1, 1024, "window height"), found.width = integer(layer, 20, 1, 1024, "window width");
    found.down = integer(layer, 21, 0, std::min(grid.height, found.height) - 1, "shift");
    found.right = integer(layer, 22, 0, std::min(grid.width, found.width) - 1, "shift");
    found.grid_height = grid.height, found.grid_width = grid.width;
    const int64_t places = int64_t(found.rows()) * found.columns() * found.area();
    if (found.area() > most_window || places > 4 * int64_t(most_tokens))
        fail("the model file is damaged: windows of layer %d are too large; export it again", layer);
    made.windows = found.rows() * found.columns(), made.queries = made.tokens = found.area();
    made.frozen_windows = integer(layer, 23, 0, 1, "windows of frozen entries") ? made.windows : 1;
    made.constant_windows = integer(layer, 24, 0, 1, "windows of constants") ? made.windows : 1;
    made.order = found.order();
    made.grid = found;
}

// What is added to logits: a bias for every head and pair, and the mask between regions of a shifted window.
void Reader::bias(int layer, Attention &made) {
    if (!made.logit_heads) return;
    const bool own = file_.has(layer, 21); // else one of zeros for all heads
    const size_t tokens = size_t(made.tokens), rows = size_t(own ? made.logit_heads : 1) * tokens;
    made.bias.assign(rows * made.map_stride, -1e30f);
    Array<float> found(rows * tokens);
    if (own) found = file_.floats(layer, 21, {uint64_t(made.logit_heads), tokens, tokens});
    for (size_t row = 0; row < rows; row++)
        for (size_t key = 0; key < tokens; key++) made.bias[row * made.map_stride + key] = found[row * tokens + key] * log2e;
    made.grid.add_masks(file_.number(layer, 1, "mask") * log2e, made.map_stride, made.masks, made.mask_of);
    made_.bytes += 4 * (made.bias.size() + made.masks.size() + made.order.size());
}

} // namespace vf
