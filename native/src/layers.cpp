#include "layers.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace vf {

namespace {

constexpr int most_channels = 1 << 14, most_tokens = 1 << 16, most_heads = 256, most_width = 1024;
constexpr float most_zero = 1 << 15;

void check_zero(float value) {
    if (value != std::round(value) || std::fabs(value) > most_zero)
        fail("the model file is damaged: a zero point is no small integer; export it again");
}

void check_scale(float value) {
    if (!(value > 0)) fail("the model file is damaged: a scale is not positive; export it again");
}

class Reader {
  public:
    Reader(const File &file, const Kernels &kernels) : file_(file) {
        made_.kernels = &kernels;
        made_.linears.resize(file.layers().size());
        made_.norms.resize(file.layers().size());
    }

    Layers read() {
        int count = int(file_.layers().size());
        bool embedded = false, classified = false;
        for (int layer = 0; layer < count; layer++) {
            uint32_t kind = file_.layers()[size_t(layer)].kind;
            bool step = kind == layer_attention || kind == layer_feed_forward || kind == layer_norm_step;
            if (classified || (embedded && kind == layer_embed) || (!embedded && (step || kind == layer_head)))
                fail("the model file is damaged: its layers are in an impossible order; export it again");
            if (kind == layer_linear) linear(layer);
            else if (kind == layer_norm) norm(layer);
            else if (kind == layer_embed) embed(layer), embedded = true;
            else if (kind == layer_attention) attention(layer);
            else if (kind == layer_feed_forward) feed_forward(layer);
            else if (kind == layer_norm_step) norm_step(layer);
            else if (kind == layer_head) head(layer), classified = true;
            else fail("the model file has a layer of kind %u, which this engine does not know; install the engine that belongs to it", kind);
        }
        if (!classified) fail("the model file is damaged: it has no classifier; export it again");
        return std::move(made_);
    }

  private:
    size_t lanes() const { return size_t(made_.kernels->lanes); }

    int integer(int layer, int slot, int low, int high, const char *what) const { return file_.integer(layer, slot, low, high, what); }

    void linear(int layer) {
        int inputs = integer(layer, 0, 1, most_channels, "inputs"), outputs = integer(layer, 1, 1, 4 * most_channels, "outputs");
        Quantizer input;
        input.bits = integer(layer, 2, 2, 8, "bits"), input.dynamic = integer(layer, 3, 0, 1, "input mode") == 1;
        if (input.dynamic) input.bits = 8;
        else {
            input.scale = file_.number(layer, 0, "scale"), input.zero = file_.number(layer, 1, "zero point");
            check_scale(input.scale), check_zero(input.zero);
        }
        int bits;
        uint64_t columns = uint64_t(outputs);
        Array<uint8_t> codes = file_.codes(layer, 0, {columns, uint64_t(inputs)}, bits);
        Array<float> scale = file_.floats(layer, 1, {columns}), zero = file_.floats(layer, 2, {columns}), bias;
        if (file_.has(layer, 3)) bias = file_.floats(layer, 3, {columns});
        for (float value : zero) check_zero(value);
        made_.linears[size_t(layer)] = std::make_unique<Linear>(make_linear(inputs, outputs, input, codes, scale, zero, bias, *made_.kernels));
        Linear &made = *made_.linears[size_t(layer)];
        made.packed.data = made.weights.data(), made.packed.start = made.start.data();
        made_.bytes += made.weights.size() + 20 * made.start.size();
    }

    void norm(int layer) {
        auto made = std::make_unique<Norm>();
        made->channels = integer(layer, 0, 1, most_channels, "channels");
        made->epsilon = file_.number(layer, 0, "epsilon");
        if (made->epsilon < 0) fail("the model file is damaged: layer %d has an epsilon below zero; export it again", layer);
        made->gamma = file_.floats(layer, 0, {uint64_t(made->channels)}), made->beta = file_.floats(layer, 1, {uint64_t(made->channels)});
        made->gamma.resize(round_up(made->gamma.size(), lanes())), made->beta.resize(made->gamma.size());
        made_.norms[size_t(layer)] = std::move(made);
    }

    // A layer that another one names, which stands before it.
    template <typename T> const T *named(const std::vector<std::unique_ptr<T>> &known, int layer, int slot, const char *what) const {
        int index = integer(layer, slot, 0, layer - 1, what);
        if (known[size_t(index)] == nullptr)
            fail("the model file is damaged: layer %d names layer %d as its %s, which it is not; export it again", layer, index, what);
        return known[size_t(index)].get();
    }
    const Linear *linear_of(int layer, int slot, int inputs, int outputs) const {
        const Linear *found = named(made_.linears, layer, slot, "linear layer");
        if ((inputs && found->inputs != inputs) || (outputs && found->outputs != outputs))
            fail("the model file is damaged: layer %d names a linear layer of another width; export it again", layer);
        return found;
    }
    const Norm *norm_of(int layer, int slot, int channels) const {
        const Norm *found = named(made_.norms, layer, slot, "norm");
        if (found->channels != channels) fail("the model file is damaged: layer %d names a norm of another width; export it again", layer);
        return found;
    }

    NormedInput normed(const Norm *norm, const Linear &next) const {
        NormedInput made;
        made.norm = norm, made.gain = norm->gamma, made.shift = norm->beta;
        if (!next.input.dynamic)
            for (size_t c = 0; c < made.gain.size(); c++) {
                made.gain[c] *= next.input.inverse();
                made.shift[c] = made.shift[c] * next.input.inverse() + next.input.zero;
            }
        return made;
    }

    void embed(int layer) {
        Embed &made = made_.embed;
        made.channels = integer(layer, 0, 1, 1024, "channels");
        made.height = integer(layer, 1, 1, most_channels, "height"), made.width = integer(layer, 2, 1, most_channels, "width");
        made.patch_height = integer(layer, 3, 1, made.height, "patch height"), made.patch_width = integer(layer, 4, 1, made.width, "patch width");
        made_.channels = integer(layer, 7, 1, most_channels, "channels");
        int inputs = made.channels * made.patch_height * made.patch_width;
        if (made.height % made.patch_height || made.width % made.patch_width || inputs > most_channels || inputs <= 0)
            fail("the model file is damaged: its patches do not fit its pictures; export it again");
        made.linear = linear_of(layer, 5, inputs, made_.channels);
        made.prefix = integer(layer, 6, 0, most_tokens, "prefix tokens");
        if (made.patches() > most_tokens - made.prefix) fail("the model file is damaged: it has more than %d tokens; export it again", most_tokens);
        made_.tokens = made.prefix + made.patches();
        uint64_t channels = uint64_t(made_.channels);
        if (made.prefix) made.prefix_tokens = file_.floats(layer, 0, {uint64_t(made.prefix), channels});
        if (file_.has(layer, 1)) made.positions = file_.floats(layer, 1, {uint64_t(made.patches()), channels});
    }

    void attention(int layer) {
        Attention made;
        made.layer = layer;
        made.heads = integer(layer, 3, 1, most_heads, "heads"), made.width = integer(layer, 4, 1, most_width, "head width");
        made.logit_heads = integer(layer, 5, 0, made.heads, "heads with queries");
        made.tokens_out = integer(layer, 6, 1, made_.tokens, "tokens");
        made.mode = integer(layer, 7, 0, 2, "map mode"), made.map_bits = integer(layer, 8, 2, 8, "map bits");
        made.zero_code = integer(layer, 9, 0, 256, "zero code"), made.bits = integer(layer, 10, 2, 8, "bits");
        made.constant_heads = integer(layer, 11, 0, made.heads, "frozen heads");
        made.hallucinated = integer(layer, 12, 0, made.heads, "hallucinated heads");
        if (made.logit_heads + made.constant_heads + made.hallucinated != made.heads || (made.hallucinated && !made.logit_heads))
            fail("the model file is damaged: the heads of layer %d do not add up; export it again", layer);
        if (made.mode == 1 && (made.zero_code < (1 << made.map_bits) - 1 || made.zero_code > 1 << made.map_bits))
            fail("the model file is damaged: layer %d has a zero code that its bits do not have; export it again", layer);
        int inner = made.heads * made.width, outputs = (2 * made.logit_heads + made.heads) * made.width;
        made.qkv = linear_of(layer, 1, made_.channels, outputs), made.proj = linear_of(layer, 2, inner, made_.channels);
        made.input = normed(norm_of(layer, 0, made_.channels), *made.qkv);
        made.logit_scale = file_.number(layer, 0, "scale of logits");
        check_scale(made.logit_scale);
        quantizers(layer, made);
        fold(made);
        maps(layer, made);
        made_.steps.push_back({layer_attention, int(made_.attention.size())});
        made_.attention.push_back(std::move(made));
    }

    void quantizers(int layer, Attention &made) {
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
        if (moving && made.mode == 2 && file_.has(layer, 7)) scales(found.map_zero, 7, moving, true);
        // A logit is at most width * 255 * 128 and what the zero point of queries takes off; it stays far from what is no key.
        for (float zero : found.query_zero)
            if (double(made.width) * 128.0 * (255.0 + std::fabs(zero)) >= double(1 << 29))
                fail("the model file is damaged: logits of layer %d do not fit; export it again", layer);
    }

    // The product's scales and offsets with the quantizers of queries, keys and values in them.
    void fold(Attention &made) {
        made.qkv_scale = made.qkv->scale, made.qkv_offset = made.qkv->offset;
        auto part = [&](int column, float scale, float zero) {
            for (int c = column; c < column + made.width; c++) {
                made.qkv_scale[size_t(c)] /= scale;
                made.qkv_offset[size_t(c)] = made.qkv_offset[size_t(c)] / scale + zero;
            }
        };
        const HeadQuantizers &found = made.quantizers;
        for (int head = 0; head < made.logit_heads; head++) {
            part(made.query_column(head), found.query_scale[size_t(head)], found.query_zero[size_t(head)]);
            part(made.key_column(head), found.key_scale[size_t(head)], found.key_zero[size_t(head)]);
        }
        for (int head = 0; head < made.heads; head++) part(made.value_column(head), found.value_scale[size_t(head)], found.value_zero[size_t(head)]);
    }

    // Maps [heads][tokens][tokens] with room behind every row.
    Array<uint8_t> padded_maps(int layer, int slot, int heads, size_t stride, uint8_t fill) {
        size_t tokens = size_t(made_.tokens);
        int bits;
        Array<uint8_t> codes = file_.codes(layer, slot, {uint64_t(heads), tokens, tokens}, bits);
        if (bits != 8) fail("the model file is damaged: maps of layer %d are no 8-bit codes; export it again", layer);
        Array<uint8_t> padded(size_t(heads) * tokens * stride + alignment, fill);
        for (size_t row = 0; row < size_t(heads) * tokens; row++) std::copy_n(codes.data() + row * tokens, tokens, padded.data() + row * stride);
        made_.bytes += padded.size();
        return padded;
    }

    void maps(int layer, Attention &made) {
        size_t tokens = size_t(made_.tokens), moving = size_t(made.moving()), still = size_t(made.constant_heads);
        made.map_stride = round_up(tokens, alignment);
        if (file_.has(layer, 8)) {
            made.frozen = padded_maps(layer, 8, int(moving), made.map_stride, 255);
            if (file_.has(layer, 20)) frozen_apart(layer, made);
            else if (made.mode != 1) fail("the model file is damaged: layer %d has frozen entries without a log grid; export it again", layer);
        }
        if (still && file_.has(layer, 15)) local(layer, made);
        else if (still) {
            made.constants = padded_maps(layer, 9, int(still), made.map_stride, 0);
            made.row_scale = file_.floats(layer, 10, {still, tokens}), made.row_zero = file_.floats(layer, 11, {still, tokens});
            made.row_sums.resize(still * tokens);
            for (size_t row = 0; row < still * tokens; row++)
                for (size_t key = 0; key < tokens; key++) made.row_sums[row] += made.constants[row * made.map_stride + key];
        }
        if (made.hallucinated) {
            uint64_t drawn = uint64_t(made.hallucinated);
            made.mix = file_.floats(layer, 12, {drawn, uint64_t(made.logit_heads)});
            if (file_.has(layer, 13)) made.mix_bias = file_.floats(layer, 13, {drawn});
            made.kernel = integer(layer, 13, 0, 5, "kernel side");
            made.kernel_first = integer(layer, 14, 0, made_.tokens, "first token of the convolution");
            if (made.kernel != 0 && made.kernel != 3 && made.kernel != 5)
                fail("the model file is damaged: layer %d has a convolution of side %d; export it again", layer, made.kernel);
            if (made.kernel) made.convolution = file_.floats(layer, 14, {drawn, uint64_t(made.kernel), uint64_t(made.kernel)});
        }
    }

    // Frozen entries with a grid of their own: levels 2^(-code / 2) as 2^-7 times whole numbers, even and odd codes apart. What stays in `frozen` is zero.
    void frozen_apart(int layer, Attention &made) {
        const size_t tokens = size_t(made_.tokens), rows = size_t(made.moving()) * tokens;
        made.frozen_step = file_.floats(layer, 20, {uint64_t(made.moving())});
        for (float step : made.frozen_step) check_scale(step);
        made.frozen_even.resize(made.frozen.size()), made.frozen_odd.resize(made.frozen.size());
        made.frozen_even_sums.resize(rows), made.frozen_odd_sums.resize(rows);
        const uint8_t zero = made.mode == 1 && made.map_bits > 4 ? 254 : 16;
        for (size_t row = 0; row < rows; row++)
            for (size_t at = row * made.map_stride; at < row * made.map_stride + tokens; at++) {
                const uint8_t code = made.frozen[at];
                if (code == 255) continue;
                if (code > 16) fail("the model file is damaged: layer %d has frozen entries that its grid does not have; export it again", layer);
                const uint8_t level = code < 16 ? uint8_t(128 >> (code / 2)) : uint8_t(0);
                (code % 2 ? made.frozen_odd : made.frozen_even)[at] = level;
                (code % 2 ? made.frozen_odd_sums : made.frozen_even_sums)[row] += level;
                made.frozen[at] = zero;
            }
        made_.bytes += 2 * made.frozen.size() + 8 * rows;
    }

    // Constant maps that are kernels over the patch grid.
    void local(int layer, Attention &made) {
        const int patches = made_.embed.patches();
        made.local_height = integer(layer, 15, 1, 255, "kernel height"), made.local_width = integer(layer, 16, 1, 255, "kernel width");
        made.grid_height = integer(layer, 17, 1, patches, "grid height"), made.grid_width = integer(layer, 18, 1, patches, "grid width");
        if (made.grid_height * int64_t(made.grid_width) != patches || made.local_height % 2 == 0 || made.local_width % 2 == 0)
            fail("the model file is damaged: kernels of layer %d do not fit its patches; export it again", layer);
        const uint64_t heads = uint64_t(made.constant_heads), count = uint64_t(patches), prefix = uint64_t(made_.embed.prefix);
        made.local_kernel = file_.floats(layer, 15, {heads, uint64_t(made.local_height), uint64_t(made.local_width)});
        made.local_scale = file_.floats(layer, 16, {heads, count}), made.local_shared = file_.floats(layer, 17, {heads, count});
        if (prefix) {
            made.local_rows = file_.floats(layer, 18, {heads, prefix, uint64_t(made_.tokens)});
            made.local_columns = file_.floats(layer, 19, {heads, count, prefix});
        }
    }

    void feed_forward(int layer) {
        FeedForward made;
        made.layer = layer;
        made.first = linear_of(layer, 1, made_.channels, 0);
        bool compact = file_.layers()[size_t(layer)].ints[3] >= 0;
        made.second = linear_of(layer, 2, made.first->outputs, compact ? 0 : made_.channels);
        if (compact) made.third = linear_of(layer, 3, made.second->outputs, made_.channels);
        made.input = normed(norm_of(layer, 0, made_.channels), *made.first);
        made.activation = Activation(integer(layer, 4, 0, 3, "activation"));
        made.tokens_out = integer(layer, 5, 1, made_.tokens, "tokens");
        made_.steps.push_back({layer_feed_forward, int(made_.feed_forward.size())});
        made_.feed_forward.push_back(std::move(made));
    }

    void norm_step(int layer) {
        norm_of(layer, 0, made_.channels);
        made_.steps.push_back({layer_norm_step, integer(layer, 0, 0, layer - 1, "norm")});
    }

    void head(int layer) {
        Classifier &made = made_.classifier;
        made.linear = linear_of(layer, 1, made_.channels, 0);
        if (file_.layers()[size_t(layer)].ints[0] >= 0) made.norm = norm_of(layer, 0, made_.channels);
        made.pooling = integer(layer, 2, 0, 2, "pooling");
        made.prefix = integer(layer, 4, 0, made_.tokens - 1, "prefix tokens");
        made.norm_last = integer(layer, 5, 0, 1, "place of the norm") == 1;
        if (made.pooling == 2) {
            if (made_.tokens < 2) fail("the model file is damaged: it has one token, and two classifiers; export it again");
            made.second = linear_of(layer, 3, made_.channels, made.linear->outputs);
        }
    }

    const File &file_;
    Layers made_;
};

} // namespace

Layers read_layers(const File &file, const Kernels &kernels) { return Reader(file, kernels).read(); }

} // namespace vf
