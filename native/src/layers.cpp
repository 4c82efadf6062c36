#include "layers.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "reader.hpp"

namespace vf {

constexpr float most_zero = 1 << 15;

void check_zero(float value) {
    if (value != std::round(value) || std::fabs(value) > most_zero)
        fail("the model file is damaged: a zero point is no small integer; export it again");
}

void check_scale(float value) {
    if (!(value > 0)) fail("the model file is damaged: a scale is not positive; export it again");
}

Reader::Reader(const File &file, const Kernels &kernels) : file_(file) {
    made_.kernels = &kernels;
    made_.linears.resize(file.layers().size());
    made_.norms.resize(file.layers().size());
    made_.depthwise.resize(file.layers().size());
}

Layers Reader::read() {
    int count = int(file_.layers().size());
    bool embedded = false, classified = false;
    for (int layer = 0; layer < count; layer++) {
        uint32_t kind = file_.layers()[size_t(layer)].kind;
        const bool embeds = kind == layer_embed || kind == layer_overlapping_embed;
        bool step = kind >= layer_attention && !embeds && kind != layer_head;
        if (classified || (embedded && embeds) || (!embedded && (step || kind == layer_head)))
            fail("the model file is damaged: its layers are in an impossible order; export it again");
        if (kind == layer_linear) linear(layer);
        else if (kind == layer_norm) norm(layer);
        else if (kind == layer_depthwise) depthwise(layer);
        else if (embeds) embed(layer, kind == layer_overlapping_embed), embedded = true;
        else if (kind == layer_attention || kind == layer_window_attention || kind == layer_reduced_attention) attention(layer, LayerKind(kind));
        else if (kind == layer_feed_forward || kind == layer_convolved_feed_forward) feed_forward(layer, kind == layer_convolved_feed_forward);
        else if (kind == layer_downsample) downsample(layer);
        else if (kind == layer_norm_step) norm_step(layer);
        else if (kind == layer_turn_step) turn_step(layer);
        else if (kind == layer_head) head(layer), classified = true;
        else fail("the model file has a layer of kind %u, which this engine does not know; install the engine that belongs to it", kind);
    }
    if (!classified) fail("the model file is damaged: it has no classifier; export it again");
    return std::move(made_);
}

void Reader::add_stage(int layer, int prefix, int height, int width, int channels) {
    if (int64_t(height) * width > most_tokens - prefix)
        fail("the model file is damaged: layer %d makes more than %d tokens; export it again", layer, most_tokens);
    made_.stages.push_back({prefix + height * width, prefix, height, width, channels, stride_of(channels)});
}

void Reader::linear(int layer) {
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
    made.point();
    if (made.packed.nibbles) made_.largest_panel = std::max(made_.largest_panel, size_t(made_.kernels->panel) * size_t(made.packed.depth4) * 4);
    made_.bytes += made.weights.size() + made.nibbles.size() + made.zeros.size() + 20 * made.start.size();
}

void Reader::norm(int layer) {
    auto made = std::make_unique<Norm>();
    made->channels = integer(layer, 0, 1, most_channels, "channels");
    made->epsilon = file_.number(layer, 0, "epsilon");
    if (made->epsilon < 0) fail("the model file is damaged: layer %d has an epsilon below zero; export it again", layer);
    made->gamma = file_.floats(layer, 0, {uint64_t(made->channels)}), made->beta = file_.floats(layer, 1, {uint64_t(made->channels)});
    made->gamma.resize(round_up(made->gamma.size(), lanes())), made->beta.resize(made->gamma.size());
    made_.norms[size_t(layer)] = std::move(made);
}

// A layer that another one names, which stands before it.
template <typename T> const T *Reader::named(const std::vector<std::unique_ptr<T>> &known, int layer, int slot, const char *what) const {
    int index = integer(layer, slot, 0, layer - 1, what);
    if (known[size_t(index)] == nullptr)
        fail("the model file is damaged: layer %d names layer %d as its %s, which it is not; export it again", layer, index, what);
    return known[size_t(index)].get();
}
const Linear *Reader::linear_of(int layer, int slot, int inputs, int outputs) const {
    const Linear *found = named(made_.linears, layer, slot, "linear layer");
    if ((inputs && found->inputs != inputs) || (outputs && found->outputs != outputs))
        fail("the model file is damaged: layer %d names a linear layer of another width; export it again", layer);
    return found;
}
const Norm *Reader::norm_of(int layer, int slot, int channels) const {
    const Norm *found = named(made_.norms, layer, slot, "norm");
    if (found->channels != channels) fail("the model file is damaged: layer %d names a norm of another width; export it again", layer);
    return found;
}

Projection Reader::projection(const Norm *norm, const Linear *linear) const {
    Projection made;
    made.linear = linear, made.stride = stride_of(linear->columns);
    if (norm) made.input = normed(norm, *linear);
    made.scale = linear->scale, made.offset = linear->offset;
    return made;
}

NormedInput Reader::normed(const Norm *norm, const Linear &next) const {
    NormedInput made;
    made.norm = norm, made.gain = norm->gamma, made.shift = norm->beta;
    if (!next.input.dynamic)
        for (size_t c = 0; c < made.gain.size(); c++) {
            made.gain[c] *= next.input.inverse();
            made.shift[c] = made.shift[c] * next.input.inverse() + next.input.zero;
        }
    return made;
}

// One kernel for every channel. Sums are taken in float32, which is exact as long as they stay below 2^24.
void Reader::depthwise(int layer) {
    auto made = std::make_unique<Depthwise>();
    made->channels = integer(layer, 0, 1, 4 * most_channels, "channels");
    made->height = integer(layer, 1, 1, 15, "kernel height"), made->width = integer(layer, 2, 1, 15, "kernel width");
    made->input.bits = integer(layer, 3, 2, 8, "bits");
    made->input.scale = file_.number(layer, 0, "scale"), made->input.zero = file_.number(layer, 1, "zero point");
    check_scale(made->input.scale), check_zero(made->input.zero);
    if (made->height % 2 == 0 || made->width % 2 == 0)
        fail("the model file is damaged: layer %d has a kernel without a middle; export it again", layer);
    const size_t channels = size_t(made->channels), taps = size_t(made->height) * size_t(made->width), wide = round_up(channels, lanes());
    int bits;
    const Array<uint8_t> codes = file_.codes(layer, 0, {channels, taps}, bits);
    const Array<float> scale = file_.floats(layer, 1, {channels}), zero = file_.floats(layer, 2, {channels});
    made->weights.resize(taps * wide), made->scale.resize(wide), made->offset.resize(wide);
    if (file_.has(layer, 3)) made->offset = file_.floats(layer, 3, {channels}), made->offset.resize(wide);
    float largest = 0;
    for (size_t c = 0; c < channels; c++) {
        check_zero(zero[c]);
        made->scale[c] = scale[c] * made->input.scale;
        for (size_t tap = 0; tap < taps; tap++) {
            const float weight = float(codes[c * taps + tap]) - zero[c];
            made->weights[tap * wide + c] = weight, largest = std::max(largest, std::fabs(weight));
        }
    }
    const double reach = std::fabs(made->input.zero) + made->input.highest();
    if (double(taps) * reach * largest >= double(1 << 24)) fail("the model file is damaged: sums of layer %d do not fit; export it again", layer);
    made_.bytes += 4 * made->weights.size();
    made_.depthwise[size_t(layer)] = std::move(made);
}

void Reader::embed(int layer, bool overlapping) {
    Embed &made = made_.embed;
    made.channels = integer(layer, 0, 1, 1024, "channels");
    made.height = integer(layer, 1, 1, most_channels, "height"), made.width = integer(layer, 2, 1, most_channels, "width");
    made.patch_height = integer(layer, 3, 1, made.height, "patch height"), made.patch_width = integer(layer, 4, 1, made.width, "patch width");
    const int width = integer(layer, 7, 1, most_channels, "channels");
    int inputs = made.channels * made.patch_height * made.patch_width;
    made.stride_height = made.patch_height, made.stride_width = made.patch_width;
    made.grid_height = made.height / made.patch_height, made.grid_width = made.width / made.patch_width;
    bool fits = made.height % made.patch_height == 0 && made.width % made.patch_width == 0;
    if (overlapping) {
        made.stride_height = integer(layer, 8, 1, made.patch_height, "stride"), made.stride_width = integer(layer, 9, 1, made.patch_width, "stride");
        made.top = integer(layer, 10, 0, made.patch_height - 1, "padding"), made.left = integer(layer, 11, 0, made.patch_width - 1, "padding");
        made.grid_height = integer(layer, 12, 1, made.height, "grid height"), made.grid_width = integer(layer, 13, 1, made.width, "grid width");
        fits = int64_t(made.grid_height - 1) * made.stride_height - made.top < made.height &&
               int64_t(made.grid_width - 1) * made.stride_width - made.left < made.width;
    }
    if (!fits || inputs > most_channels || inputs <= 0) fail("the model file is damaged: its patches do not fit its pictures; export it again");
    made.linear = linear_of(layer, 5, inputs, width);
    made.prefix = integer(layer, 6, 0, most_tokens, "prefix tokens");
    add_stage(layer, made.prefix, made.grid_height, made.grid_width, width);
    uint64_t channels = uint64_t(width);
    if (made.prefix) made.prefix_tokens = file_.floats(layer, 0, {uint64_t(made.prefix), channels});
    if (file_.has(layer, 1)) made.positions = file_.floats(layer, 1, {uint64_t(made.patches()), channels});
}

void Reader::feed_forward(int layer, bool convolved) {
    FeedForward made;
    made.layer = layer;
    const int channels = stage().channels;
    made.first = linear_of(layer, 1, channels, 0);
    bool compact = names(layer, 3);
    made.second = linear_of(layer, 2, made.first->outputs, compact ? 0 : channels);
    if (compact) made.third = linear_of(layer, 3, made.second->outputs, channels);
    made.input = normed(norm_of(layer, 0, channels), *made.first);
    made.activation = Activation(integer(layer, 4, 0, 3, "activation"));
    made.tokens_out = integer(layer, 5, 1, stage().tokens, "tokens");
    if (convolved) {
        made.convolution = named(made_.depthwise, layer, 6, "convolution");
        if (made.convolution->channels != made.first->outputs || made.second->input.dynamic || stage().prefix || made.tokens_out != stage().tokens)
            fail("the model file is damaged: the convolution of layer %d does not fit; export it again", layer);
    }
    add_step(layer_feed_forward, made_.feed_forward.size());
    made_.feed_forward.push_back(std::move(made));
}

// The next stage of the stream, from a grid of patches.
void Reader::downsample(int layer) {
    Downsample made;
    const Stage from = stage();
    if (from.prefix) fail("the model file is damaged: layer %d makes a grid smaller that has prefix tokens; export it again", layer);
    made.kernel_height = integer(layer, 3, 1, 64, "kernel height"), made.kernel_width = integer(layer, 4, 1, 64, "kernel width");
    made.stride_height = integer(layer, 5, 1, 64, "stride"), made.stride_width = integer(layer, 6, 1, 64, "stride");
    made.top = integer(layer, 7, 0, made.kernel_height - 1, "padding"), made.left = integer(layer, 8, 0, made.kernel_width - 1, "padding");
    const int height = integer(layer, 9, 1, from.height, "grid height"), width = integer(layer, 10, 1, from.width, "grid width");
    const int channels = integer(layer, 11, 1, most_channels, "channels");
    const int64_t inputs = int64_t(made.patch()) * from.channels;
    // Every patch begins within the grid, so that it is not made of zeros alone.
    if (inputs > most_channels || int64_t(height - 1) * made.stride_height - made.top >= from.height ||
        int64_t(width - 1) * made.stride_width - made.left >= from.width)
        fail("the model file is damaged: patches of layer %d do not fit their grid; export it again", layer);
    made.linear = linear_of(layer, 1, int(inputs), channels);
    if (names(layer, 0)) made.input = normed(norm_of(layer, 0, int(inputs)), *made.linear);
    if (names(layer, 2)) made.after = norm_of(layer, 2, channels);
    add_step(layer_downsample, made_.downsample.size());
    made_.downsample.push_back(std::move(made));
    add_stage(layer, 0, height, width, channels);
}

void Reader::norm_step(int layer) {
    norm_of(layer, 0, stage().channels);
    add_step(layer_norm_step, size_t(integer(layer, 0, 0, layer - 1, "norm")));
}

void Reader::head(int layer) {
    Classifier &made = made_.classifier;
    const int channels = stage().channels;
    if (names(layer, 1)) made.linear = linear_of(layer, 1, channels, 0);
    if (names(layer, 0)) made.norm = norm_of(layer, 0, channels);
    made.pooling = Pooling(integer(layer, 2, 0, 3, "pooling"));
    made.prefix = integer(layer, 4, 0, stage().tokens - 1, "prefix tokens");
    made.norm_last = integer(layer, 5, 0, 1, "place of the norm") == 1;
    if (made.pooling == Pooling::none && made.linear) fail("the model file is damaged: it has a classifier of all tokens; export it again");
    if (made.pooling == Pooling::two) {
        if (stage().tokens < 2 || !made.linear) fail("the model file is damaged: it has one token or no layer, and two classifiers; export it again");
        made.second = linear_of(layer, 3, channels, made.linear->outputs);
    }
}

Layers read_layers(const File &file, const Kernels &kernels) { return Reader(file, kernels).read(); }

} // namespace vf
