// Steps that take tokens from elsewhere in the grid: attention's products, in the order of its windows, and smaller grids.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "forward.hpp"

namespace vf {

// A row that stands for no token is zero: the code of zero, or the floats before that is known.
void Forward::clear(const Linear &linear, int row, Worker &worker) const {
    const size_t stride = stride_of(linear.inputs), begin = size_t(row) * stride;
    if (linear.input.dynamic) std::fill_n(worker.floats.data() + begin, size_t(linear.inputs), 0.0f);
    else std::memset(worker.codes.data() + begin, int(std::clamp(linear.input.zero, 0.0f, linear.input.highest())), size_t(linear.inputs));
}

void Forward::queries(const Attention &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    if (!layer.first.linear) return;
    const Linear &linear = *layer.first.linear;
    const Stage &stage = layers_.stages[size_t(number)];
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        Input input = layer.order.empty() ? normed(layer.first.input, linear, stream.rows(stage, number, begin), stage.stride, end - begin, worker)
                                          : gathered(layer, stage, stream.rows(stage, number, 0), {begin, end}, worker);
        Product product = {input.codes, input.stride, end - begin, 0, input.terms, worker.unpacked.data()};
        if (layer.order.empty() && !layer.reduced() && begin >= layer.tokens_out) product.first_column = layer.logit_heads * layer.width;
        project_codes(layer, layer.first, product, stream.qkv.data() + size_t(begin) * layer.first.stride, worker);
    }
}

void Forward::project_codes(const Attention &layer, const Projection &to, const Product &product, uint8_t *codes, Worker &worker) const {
    Epilogue how;
    how.scale = to.scale.data(), how.offset = to.offset.data(), how.folded = true, how.highest = float((1 << layer.bits) - 1);
    how.codes = codes, how.stride = to.stride;
    kernels_.product(product, to.linear->packed, how, worker.sums.data());
    for (const Limit &limit : to.limits)
        for (int row = 0; row < product.rows; row++) {
            uint8_t *const place = codes + size_t(row) * to.stride + size_t(limit.column);
            for (int c = 0; c < limit.count; c++) place[c] = std::min(place[c], limit.highest);
        }
}

// Keys and values of tokens or patches, where they have a product of their own.
void Forward::keys(const Attention &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Linear &linear = *layer.keys.linear;
    const Stage &stage = layers_.stages[size_t(number)];
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        const int end = std::min(begin + chunk, rows.last);
        Input input = layer.reduction ? reduced(layer, stage, stream.rows(stage, number, 0), {begin, end}, worker)
                                      : normed(layer.keys.input, linear, stream.rows(stage, number, begin), stage.stride, end - begin, worker);
        Product product = {input.codes, input.stride, end - begin, 0, input.terms, worker.unpacked.data()};
        project_codes(layer, layer.keys, product, stream.keys.data() + size_t(begin) * layer.keys.stride, worker);
    }
}

// Normalized tokens of a patch side by side, through a linear layer and a norm.
Forward::Input Forward::reduced(const Attention &layer, const Stage &stage, const float *x, Rows patches, Worker &worker) const {
    const Linear &linear = *layer.reduction;
    const Norm &norm = *layer.norm;
    const size_t stride = stride_of(linear.inputs), channels = size_t(stage.channels), out = stride_of(linear.columns);
    const int rows = patches.last - patches.first, across = stage.width / layer.reduction_width;
    for (int patch = patches.first; patch < patches.last; patch++) {
        float *place = worker.floats.data() + size_t(patch - patches.first) * stride;
        const int y = patch / across * layer.reduction_height, left = patch % across * layer.reduction_width;
        for (int row = y; row < y + layer.reduction_height; row++)
            for (int column = left; column < left + layer.reduction_width; column++, place += channels)
                kernels_.norm(x + (size_t(row) * size_t(stage.width) + size_t(column)) * stage.stride, stage.stride, 1, norm.channels, norm.epsilon,
                              norm.gamma.data(), norm.beta.data(), place, stride);
    }
    Input input = coded(linear, worker.floats.data(), stride, rows, worker.codes.data(), stride, worker);
    store(linear, input, rows, worker.floats.data(), out, worker);
    return normed(layer.keys.input, *layer.keys.linear, worker.floats.data(), out, rows, worker);
}

// The rest of a feed-forward layer from its convolution on.
void Forward::convolve(const FeedForward &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Stage &stage = layers_.stages[size_t(number)];
    const Depthwise &convolution = *layer.convolution;
    const Quantizer &next = layer.second->input;
    DepthwiseProduct made;
    made.codes = stream.hidden.data(), made.stride = made.out_stride = stride_of(layer.first->columns);
    made.height = stage.height, made.width = stage.width, made.channels = convolution.channels;
    made.kernel_height = convolution.height, made.kernel_width = convolution.width, made.input_zero = convolution.input.zero;
    made.weights = convolution.weights.data(), made.weights_stride = convolution.scale.size();
    made.scale = convolution.scale.data(), made.offset = convolution.offset.data(), made.activation = layer.activation;
    made.out = worker.hidden.data(), made.inverse = next.inverse(), made.zero = next.zero, made.highest = next.highest();
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        const int end = std::min(begin + chunk, rows.last);
        kernels_.depthwise(made, begin, end);
        Input input = row_terms(*layer.second, made.out, made.out_stride, end - begin, worker);
        add_hidden(layer, input, end - begin, stream.rows(stage, number, begin), stage.stride, worker);
    }
}

// Normalized tokens in the order of windows; zeros, not norms of zeros, are behind the edge of the grid.
Forward::Input Forward::gathered(const Attention &layer, const Stage &stage, const float *x, Rows places, Worker &worker) const {
    const Linear &linear = *layer.first.linear;
    const NormedInput &by = layer.first.input;
    const Norm &norm = *by.norm;
    const size_t stride = stride_of(stage.channels);
    const bool dynamic = linear.input.dynamic;
    for (int place = places.first; place < places.last; place++) {
        const int token = layer.order[size_t(place)], row = place - places.first;
        if (token < 0) continue;
        const float *from = x + size_t(token) * stage.stride;
        if (dynamic)
            kernels_.norm(from, stage.stride, 1, norm.channels, norm.epsilon, by.gain.data(), by.shift.data(),
                          worker.floats.data() + size_t(row) * stride, stride);
        else std::memcpy(worker.floats.data() + size_t(row) * stride, from, size_t(stage.channels) * sizeof(float));
    }
    const int rows = places.last - places.first;
    if (!dynamic)
        kernels_.norm_codes(worker.floats.data(), stride, rows, norm.channels, norm.epsilon, by.gain.data(), by.shift.data(), linear.input.highest(),
                            worker.codes.data(), stride);
    for (int row = 0; row < rows; row++)
        if (layer.order[size_t(places.first + row)] < 0) clear(linear, row, worker);
    if (dynamic) return coded(linear, worker.floats.data(), stride, rows, worker.codes.data(), stride, worker);
    return row_terms(linear, worker.codes.data(), stride, rows, worker);
}

void Forward::project(const Attention &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Linear &linear = *layer.proj;
    const Stage &stage = layers_.stages[size_t(number)];
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        const size_t at = size_t(begin) * layer.mixed_stride;
        Input input = linear.input.dynamic
                          ? coded(linear, stream.mixed_floats.data() + at, layer.mixed_stride, end - begin, worker.codes.data(), code_stride_, worker)
                          : row_terms(linear, stream.mixed.data() + at, layer.mixed_stride, end - begin, worker);
        if (layer.order.empty()) {
            add(linear, input, end - begin, stream.rows(stage, number, begin), stage.stride, worker);
            continue;
        }
        const size_t stride = stride_of(linear.columns);
        store(linear, input, end - begin, worker.floats.data(), stride, worker);
        for (int place = begin; place < end; place++) {
            const int token = layer.order[size_t(place)];
            if (token < 0) continue;
            float *const x = stream.rows(stage, number, token);
            const float *const y = worker.floats.data() + size_t(place - begin) * stride;
            for (int c = 0; c < stage.channels; c++) x[c] += y[c];
        }
    }
}

void Forward::downsample(const Downsample &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Linear &linear = *layer.linear;
    const Stage &from = layers_.stages[size_t(number)], &to = layers_.stages[size_t(number) + 1];
    const size_t stride = stride_of(linear.inputs), channels = size_t(from.channels);
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        const int end = std::min(begin + chunk, rows.last), count = end - begin;
        for (int token = begin; token < end; token++) {
            float *place = worker.floats.data() + size_t(token - begin) * stride;
            const int y = token / to.width * layer.stride_height - layer.top, x = token % to.width * layer.stride_width - layer.left;
            for (int down = y; down < y + layer.kernel_height; down++)
                for (int right = x; right < x + layer.kernel_width; right++, place += channels) {
                    const bool inside = down >= 0 && down < from.height && right >= 0 && right < from.width;
                    if (inside) std::memcpy(place, stream.rows(from, number, down * from.width + right), channels * sizeof(float));
                    else std::fill_n(place, channels, 0.0f);
                }
        }
        Input input = layer.input.norm ? normed(layer.input, linear, worker.floats.data(), stride, count, worker)
                                       : coded(linear, worker.floats.data(), stride, count, worker.codes.data(), stride, worker);
        float *const out = stream.rows(to, number + 1, begin);
        store(linear, input, count, out, to.stride, worker);
        if (layer.after)
            kernels_.norm(out, to.stride, count, to.channels, layer.after->epsilon, layer.after->gamma.data(), layer.after->beta.data(), out,
                          to.stride);
    }
}

} // namespace vf
