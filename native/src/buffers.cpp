// What a forward pass takes: the largest that any layer needs, taken before pictures come.
#include "forward.hpp"

#include <algorithm>

namespace vf {

namespace {

int most_rows(const Layers &layers) {
    for (const FeedForward &layer : layers.feed_forward)
        if (layer.first->bytes() + layer.second->bytes() > large_block) return most_chunk_of_large;
    return most_chunk;
}

} // namespace

Forward::Forward(const Layers &layers)
    : layers_(layers), kernels_(*layers.kernels), chunk_(int(round_up(size_t(most_rows(layers)), size_t(chunk_unit())))) {
    size_t codes = 1, hidden = 1, inner = 1, width = 1, keys = 1, floats = 1;
    auto reaches = [](size_t &size, int count) { size = std::max(size, stride_of(count)); };
    reaches(codes, layers.embed.linear->inputs);
    for (const Stage &stage : layers.stages) reaches(codes, stage.channels);
    for (const Attention &layer : layers.attention) {
        reaches(codes, layer.proj->inputs);
        if (layer.reduction) reaches(codes, layer.reduction->inputs), reaches(floats, layer.reduction->columns);
        reaches(floats, layer.proj->columns);
        width = std::max(width, round_up(size_t(layer.width), size_t(kernels_.lanes)));
        keys = std::max(keys, round_up(size_t(layer.tokens), 64));
        for (int head = 0; head < layer.moving(); head++) float_maps_ = float_maps_ || layer.float_map(head);
    }
    for (const FeedForward &layer : layers.feed_forward) {
        reaches(hidden, layer.first->columns);
        if (layer.third) reaches(inner, layer.second->columns);
    }
    for (const Downsample &layer : layers.downsample) reaches(codes, layer.linear->inputs);
    code_stride_ = codes, hidden_stride_ = hidden, inner_stride_ = inner;
    float_stride_ = std::max({codes, hidden, inner, floats});
    most_keys_ = keys, keys_bytes_ = keys * round_up(width, size_t(kernels_.depth)), values_bytes_ = keys * width;
}

Stream Forward::make_stream() const {
    Stream made;
    size_t x[2] = {}, qkv = 0, keys = 0, mixed = 0, floats = 0, hidden = 0;
    for (size_t stage = 0; stage < layers_.stages.size(); stage++)
        x[stage % 2] = std::max(x[stage % 2], size_t(layers_.stages[stage].tokens) * layers_.stages[stage].stride);
    for (const Attention &layer : layers_.attention) {
        const size_t rows = size_t(layer.windows) * size_t(layer.queries) + 2 * rows_behind; // kernels read whole tiles
        qkv = std::max(qkv, rows * layer.first.stride), keys = std::max(keys, size_t(layer.tokens) * layer.keys.stride);
        mixed = std::max(mixed, rows * layer.mixed_stride);
        if (layer.proj->input.dynamic) floats = std::max(floats, rows * layer.mixed_stride);
    }
    made.x[0].resize(x[0]), made.x[1].resize(x[1]), made.qkv.resize(qkv), made.mixed.resize(mixed), made.mixed_floats.resize(floats);
    made.keys.resize(keys);
    for (const FeedForward &layer : layers_.feed_forward)
        if (layer.convolution) hidden = std::max(hidden, size_t(layer.tokens_out + rows_behind) * stride_of(layer.first->columns));
    made.hidden.resize(hidden);
    return made;
}

template <typename... Arrays> static size_t bytes_of(const Arrays &...arrays) {
    return (size_t(0) + ... + (arrays.size() * sizeof(typename Arrays::value_type)));
}

size_t Forward::stream_bytes() const {
    const Stream made = make_stream();
    return bytes_of(made.x[0], made.x[1], made.mixed_floats, made.qkv, made.keys, made.mixed, made.hidden);
}

Worker Forward::make_worker() const {
    Worker made;
    size_t rows = size_t(chunk_), columns = most_keys_, channels = values_bytes_ / columns;
    const size_t tile = size_t(kernels_.rows);
    made.codes.resize(rows * code_stride_), made.hidden.resize(rows * hidden_stride_), made.inner.resize(rows * inner_stride_);
    made.floats.resize(rows * float_stride_), made.row_scale.resize(rows), made.row_zero.resize(rows), made.row_sum.resize(rows);
    made.sums.resize(tile * size_t(kernels_.panel));
    made.unpacked.resize(layers_.largest_panel);
    size_t logit_heads = 1, hallucinated = 1;
    bool float_values = float_maps_;
    for (const Attention &layer : layers_.attention) {
        float_values = float_values || layer.local_height;
        if (layer.local_height && layer.local_apart > 1) {
            const size_t stride = round_up(size_t(layer.width), size_t(kernels_.lanes)), border = 2 * size_t(layer.local_apart - 1);
            const size_t height = size_t(layer.grid_height) + border, wide = size_t(layer.grid_width) + border;
            made.between.resize(std::max(made.between.size(), height * size_t(layer.grid_width) * stride));
            made.picture.resize(std::max(made.picture.size(), height * wide * stride));
        }
        if (layer.hallucinated == 0) continue;
        logit_heads = std::max(logit_heads, size_t(layer.logit_heads)), hallucinated = std::max(hallucinated, size_t(layer.hallucinated));
        // A row of zeros, mixed rows, columns before the convolution, and logits of one head.
        const size_t reached = tile + size_t(layer.kernel), row = columns + 2 * mixed_border;
        const size_t mixed = row + reached * size_t(layer.hallucinated) * (row + size_t(layer.kernel_first)) + tile * columns;
        made.scratch.mixed.resize(std::max(made.scratch.mixed.size(), mixed));
    }
    made.computed.resize(logit_heads), made.query_zero.resize(logit_heads), made.key_shift.resize(logit_heads);
    made.hallucinated.resize(hallucinated), made.mix_bias.resize(hallucinated), made.scratch.mixed_weights.resize(logit_heads * (1 + tile));
    made.keys.resize(keys_bytes_ * logit_heads), made.key_start.resize(columns * logit_heads);
    made.values.resize(values_bytes_ * hallucinated), made.value_sums.resize(channels * hallucinated);
    if (float_values) made.float_values.resize(values_bytes_ * hallucinated), made.float_sums.resize(channels);
    made.pooled.resize(size_t(layers_.stages.back().channels));
    const Linear *second = layers_.classifier.second;
    const Linear *first = layers_.classifier.linear;
    made.logits.resize(size_t(std::max(first ? first->columns : 0, second ? second->columns : 0)));
    size_t behind = 0;
    for (const Attention &layer : layers_.attention) {
        if (layer.windowed_heads == 0) continue;
        const size_t row = columns + windowed_end; // whole vectors are read and written behind the last one
        made.scratch.near_logits.resize(row), made.scratch.near_codes.resize(2 * row);
        if (float_maps_) made.scratch.near_levels.resize(row);
        behind = windowed_end;
    }
    made.scratch.logits.resize(tile * columns * logit_heads + behind), made.scratch.planes.resize(2 * tile * (columns + behind));
    made.scratch.sums.resize(4 * tile * size_t(kernels_.panel));
    if (float_maps_) made.scratch.levels.resize(tile * (columns + behind));
    return made;
}

size_t Forward::worker_bytes() const {
    const Worker made = make_worker();
    const Scratch &scratch = made.scratch;
    return bytes_of(made.codes, made.hidden, made.inner, made.floats, made.row_scale, made.float_values, made.float_sums, made.between, made.picture,
                    made.sums, made.row_zero, made.row_sum, made.keys, made.values, made.unpacked, made.key_start, made.value_sums, made.query_zero,
                    made.key_shift, made.computed, made.hallucinated, made.mix_bias, made.pooled, made.logits) +
           bytes_of(scratch.logits, scratch.sums, scratch.mixed, scratch.mixed_weights, scratch.planes, scratch.levels, scratch.near_logits,
                    scratch.near_codes, scratch.near_levels);
}

} // namespace vf
