#include "forward.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace vf {

namespace {

constexpr int only_part = 0, qkv_part = 0, map_part = 1, projection_part = 2; // of a step

// Adds up the time of a part where the profile is on.
class Timer {
  public:
    Timer(Profile &profile, size_t row) : profile_(profile.on.load(std::memory_order_relaxed) ? &profile : nullptr), row_(row) {
        if (profile_) start_ = std::chrono::steady_clock::now();
    }
    ~Timer() {
        if (profile_) profile_->seconds[row_] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

  private:
    Profile *profile_;
    size_t row_;
    std::chrono::steady_clock::time_point start_;
};

} // namespace

// A worker's rows, whole tiles but for the last.
Forward::Rows Forward::rows_of(int number, int count, int tokens) const {
    int tiles = (tokens + kernels_.rows - 1) / kernels_.rows;
    int first = int(int64_t(tiles) * number / count) * kernels_.rows, last = int(int64_t(tiles) * (number + 1) / count) * kernels_.rows;
    return {std::min(first, tokens), std::min(last, tokens)};
}

// Rows that pass through the layers of a block together: as many in every chunk, as far as whole tiles allow.
int Forward::chunk_of(Rows rows) const {
    const int count = rows.last - rows.first, chunks = std::max(1, (count + chunk_ - 1) / chunk_);
    return std::max(chunk_unit(), int(round_up(size_t((count + chunks - 1) / chunks), size_t(chunk_unit()))));
}

// What belongs to rows of codes besides them: sums where weights are shifted.
Forward::Input Forward::row_terms(const Linear &linear, const uint8_t *codes, size_t stride, int rows, Worker &worker) const {
    Input made = {codes, stride, {}};
    if (linear.shifted) {
        kernels_.sum_rows(codes, stride, rows, linear.inputs, worker.row_sum.data());
        for (int row = 0; row < rows; row++) worker.row_sum[size_t(row)] = pair_of_sum(worker.row_sum[size_t(row)]);
        made.terms.sum = worker.row_sum.data(), made.terms.column_shift = linear.column_shift.data();
    }
    if (linear.input.dynamic) {
        made.terms.scale = worker.row_scale.data(), made.terms.zero = worker.row_zero.data();
        made.terms.column_sums = linear.column_sums.data();
    }
    return made;
}

// Codes of rows of floats: by the layer's static quantizer, or each row by its own range, which always holds zero.
Forward::Input Forward::coded(const Linear &linear, const float *floats, size_t floats_stride, int rows, uint8_t *codes, size_t stride,
                              Worker &worker) const {
    for (int row = 0; row < rows; row++) {
        const float *from = floats + size_t(row) * floats_stride;
        float scale = linear.input.scale, zero = linear.input.zero;
        if (linear.input.dynamic) {
            float low = 0, high = 0;
            for (int k = 0; k < linear.inputs; k++) low = std::min(low, from[k]), high = std::max(high, from[k]);
            scale = high > low ? (high - low) / 255.0f : 1.0f;
            zero = std::nearbyint(-low / scale);
            worker.row_scale[size_t(row)] = scale, worker.row_zero[size_t(row)] = int32_t(zero);
        }
        kernels_.quantize(from, size_t(linear.inputs), scale, zero, linear.input.highest(), codes + size_t(row) * stride);
    }
    return row_terms(linear, codes, stride, rows, worker);
}

Forward::Input Forward::normed(const NormedInput &input, const Linear &linear, const float *x, size_t stride, int rows, Worker &worker) const {
    const Norm &norm = *input.norm;
    const size_t out = stride_of(norm.channels);
    if (linear.input.dynamic) {
        kernels_.norm(x, stride, rows, norm.channels, norm.epsilon, input.gain.data(), input.shift.data(), worker.floats.data(), out);
        return coded(linear, worker.floats.data(), out, rows, worker.codes.data(), out, worker);
    }
    kernels_.norm_codes(x, stride, rows, norm.channels, norm.epsilon, input.gain.data(), input.shift.data(), linear.input.highest(),
                        worker.codes.data(), out);
    return row_terms(linear, worker.codes.data(), out, rows, worker);
}

void Forward::store(const Linear &linear, const Input &input, int rows, float *out, size_t stride, Worker &worker) const {
    Product product = {input.codes, input.stride, rows, 0, input.terms, worker.unpacked.data()};
    Epilogue how;
    how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.store = out, how.stride = stride;
    kernels_.product(product, linear.packed, how, worker.sums.data());
}

// x += the linear layer.
void Forward::add(const Linear &linear, const Input &input, int rows, float *x, size_t stride, Worker &worker) const {
    Product product = {input.codes, input.stride, rows, 0, input.terms, worker.unpacked.data()};
    Epilogue how;
    how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.add = x, how.stride = stride;
    kernels_.product(product, linear.packed, how, worker.sums.data());
}

void Forward::embed(const float *pixels, Stream &stream, Worker &worker, Rows rows) const {
    const Embed &layer = layers_.embed;
    const Linear &linear = *layer.linear;
    const Stage &stage = layers_.stages.front();
    const size_t flat_stride = stride_of(linear.inputs);
    const size_t channels = size_t(stage.channels);
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        for (int token = begin; token < end; token++) {
            float *x = stream.rows(stage, 0, token);
            bool prefix = token < layer.prefix;
            const float *start = prefix                    ? layer.prefix_tokens.data() + size_t(token) * channels
                                 : layer.positions.empty() ? nullptr
                                                           : layer.positions.data() + size_t(token - layer.prefix) * channels;
            if (start) std::memcpy(x, start, channels * sizeof(float));
            else std::memset(x, 0, channels * sizeof(float));
            if (prefix) continue;
            const int patch = token - layer.prefix;
            const int top = patch / layer.grid_width * layer.stride_height - layer.top,
                      left = patch % layer.grid_width * layer.stride_width - layer.left;
            const int skipped = std::max(-left, 0), right = std::min(left + layer.patch_width, layer.width);
            float *flat = worker.floats.data() + size_t(token - begin) * flat_stride;
            for (int c = 0; c < layer.channels; c++)
                for (int y = top; y < top + layer.patch_height; y++, flat += layer.patch_width) {
                    const bool whole = y >= 0 && y < layer.height && !skipped && right == left + layer.patch_width;
                    if (!whole) std::fill_n(flat, layer.patch_width, 0.0f);
                    if (y < 0 || y >= layer.height) continue;
                    const float *from = pixels + (size_t(c) * size_t(layer.height) + size_t(y)) * size_t(layer.width);
                    std::memcpy(flat + skipped, from + left + skipped, size_t(right - left - skipped) * sizeof(float));
                }
        }
        int first = std::max(begin, layer.prefix);
        if (first >= end) continue;
        Input input = coded(linear, worker.floats.data() + size_t(first - begin) * flat_stride, flat_stride, end - first, worker.codes.data(),
                            flat_stride, worker);
        add(linear, input, end - first, stream.rows(stage, 0, first), stage.stride, worker);
    }
}

// The next layer's codes straight from the sums of this one.
void Forward::code(const Linear &linear, const Input &input, int rows, const Quantizer &next, Activation activation, uint8_t *codes, size_t stride,
                   Worker &worker) const {
    Product product = {input.codes, input.stride, rows, 0, input.terms, worker.unpacked.data()};
    Epilogue how;
    how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.activation = activation, how.codes = codes, how.stride = stride;
    how.inverse = next.inverse(), how.zero = next.zero, how.highest = next.highest();
    kernels_.product(product, linear.packed, how, worker.sums.data());
}

// The next layer's codes, through floats where that layer takes each token's own range.
Forward::Input Forward::through(const Linear &linear, const Linear &next, Activation activation, const Input &input, int rows, uint8_t *codes,
                                Worker &worker) const {
    const size_t stride = stride_of(linear.columns);
    if (!next.input.dynamic) {
        code(linear, input, rows, next.input, activation, codes, stride, worker);
        return row_terms(next, codes, stride, rows, worker);
    }
    Product product = {input.codes, input.stride, rows, 0, input.terms, worker.unpacked.data()};
    Epilogue how;
    how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.activation = activation;
    how.store = worker.floats.data(), how.stride = stride;
    kernels_.product(product, linear.packed, how, worker.sums.data());
    return coded(next, worker.floats.data(), stride, rows, codes, stride, worker);
}

// What follows the activation is added to the stream.
void Forward::add_hidden(const FeedForward &layer, Input input, int rows, float *x, size_t stride, Worker &worker) const {
    const Linear *last = layer.second;
    if (layer.third) {
        input = through(*layer.second, *layer.third, Activation::none, input, rows, worker.inner.data(), worker);
        last = layer.third;
    }
    add(*last, input, rows, x, stride, worker);
}

// All of it, or what comes before a convolution over the grid.
void Forward::feed_forward(const FeedForward &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Stage &stage = layers_.stages[size_t(number)];
    for (int begin = rows.first, chunk = chunk_of(rows); begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last), count = end - begin;
        float *x = stream.rows(stage, number, begin);
        Input input = normed(layer.input, *layer.first, x, stage.stride, count, worker);
        if (layer.convolution) {
            const size_t stride = stride_of(layer.first->columns);
            uint8_t *const codes = stream.hidden.data() + size_t(begin) * stride;
            code(*layer.first, input, count, layer.convolution->input, Activation::none, codes, stride, worker);
            continue;
        }
        input = through(*layer.first, *layer.second, layer.activation, input, count, worker.hidden.data(), worker);
        add_hidden(layer, input, count, x, stage.stride, worker);
    }
}

void Forward::classify(float *logits, Stream &stream, Worker &worker) const {
    const Classifier &layer = layers_.classifier;
    const Stage &stage = layers_.stages.back();
    const size_t channels = size_t(stage.channels), stride = stage.stride;
    Array<float> &x_rows = stream.x[(layers_.stages.size() - 1) % 2];
    auto normalize = [&](float *x) {
        if (layer.norm) kernels_.norm(x, stride, 1, int(channels), layer.norm->epsilon, layer.norm->gamma.data(), layer.norm->beta.data(), x, stride);
    };
    const bool all = layer.pooling == Pooling::mean || layer.pooling == Pooling::none;
    const int tokens = all ? stage.tokens : layer.pooling == Pooling::two ? 2 : 1;
    if (!layer.norm_last)
        for (int token = 0; token < tokens; token++) normalize(x_rows.data() + size_t(token) * stride);
    float *pooled = x_rows.data();
    if (layer.pooling == Pooling::none) {
        for (int token = 0; token < tokens; token++) std::copy_n(x_rows.data() + size_t(token) * stride, channels, logits + size_t(token) * channels);
        return;
    }
    if (layer.pooling == Pooling::mean) {
        Array<double> &sum = worker.pooled;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int token = layer.prefix; token < tokens; token++)
            for (size_t c = 0; c < channels; c++) sum[c] += x_rows[size_t(token) * stride + c];
        for (size_t c = 0; c < channels; c++) pooled[c] = float(sum[c] / (tokens - layer.prefix));
    }
    if (layer.norm_last) normalize(pooled);
    if (!layer.linear) {
        std::copy_n(pooled, channels, logits);
        return;
    }
    std::fill_n(logits, layer.linear->outputs, 0.0f);
    auto head = [&](const Linear &linear, const float *x, float share) {
        Input input = coded(linear, x, stride, 1, worker.codes.data(), code_stride_, worker);
        Array<float> &out = worker.logits;
        Product product = {input.codes, input.stride, 1, 0, input.terms, worker.unpacked.data()};
        Epilogue how;
        how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.store = out.data(), how.stride = out.size();
        kernels_.product(product, linear.packed, how, worker.sums.data());
        for (int c = 0; c < linear.outputs; c++) logits[c] += share * out[size_t(c)];
    };
    head(*layer.linear, pooled, layer.second ? 0.5f : 1.0f);
    if (layer.second) head(*layer.second, x_rows.data() + stride, 0.5f);
}

void Forward::run(const float *pixels, float *logits, Stream &stream, Worker &worker, int number, int count, Barrier &barrier,
                  Profile &profile) const {
    Rows rows = rows_of(number, count, layers_.stages.front().tokens);
    {
        Timer timer(profile, profile.embedding);
        embed(pixels, stream, worker, rows);
    }
    for (size_t step = 0; step < layers_.steps.size(); step++) {
        const Step &found = layers_.steps[step];
        if (found.kind == layer_attention) {
            const Attention &layer = layers_.attention[size_t(found.index)];
            const bool windowed = !layer.order.empty();
            // Windows take tokens that others wrote, and write to those of others; patches take them.
            if (windowed || layer.reduced()) barrier.wait();
            const Rows places = windowed ? rows_of(number, count, layer.windows * layer.queries) : rows;
            {
                Timer timer(profile, profile.row(step, qkv_part));
                queries(layer, found.stage, stream, worker, places);
                if (layer.reduced()) keys(layer, found.stage, stream, worker, rows_of(number, count, layer.tokens));
            }
            barrier.wait();
            {
                Timer timer(profile, profile.row(step, map_part));
                attend(layer, stream, worker, number, count);
            }
            barrier.wait();
            {
                Timer timer(profile, profile.row(step, projection_part));
                if (!windowed) rows = rows_of(number, count, layer.tokens_out);
                project(layer, found.stage, stream, worker, windowed ? places : rows);
            }
            if (windowed) barrier.wait();
        } else if (found.kind == layer_feed_forward) {
            const FeedForward &layer = layers_.feed_forward[size_t(found.index)];
            const Rows taken = rows_of(number, count, layer.tokens_out);
            {
                Timer timer(profile, profile.row(step, only_part));
                feed_forward(layer, found.stage, stream, worker, taken);
            }
            if (layer.convolution) {
                barrier.wait();
                {
                    Timer timer(profile, profile.row(step, only_part));
                    convolve(layer, found.stage, stream, worker, taken);
                }
                barrier.wait();
            }
        } else if (found.kind == layer_downsample) {
            barrier.wait();
            rows = rows_of(number, count, layers_.stages[size_t(found.stage) + 1].tokens);
            Timer timer(profile, profile.row(step, only_part));
            downsample(layers_.downsample[size_t(found.index)], found.stage, stream, worker, rows);
        } else if (found.kind == layer_turn_step) {
            Timer timer(profile, profile.row(step, only_part));
            turn(layers_.turns[size_t(found.index)], found.stage, stream, worker, rows);
        } else {
            const Norm &norm = *layers_.norms[size_t(found.index)];
            const Stage &stage = layers_.stages[size_t(found.stage)];
            Timer timer(profile, profile.row(step, only_part));
            float *x = stream.rows(stage, found.stage, rows.first);
            kernels_.norm(x, stage.stride, rows.last - rows.first, norm.channels, norm.epsilon, norm.gamma.data(), norm.beta.data(), x, stage.stride);
        }
    }
    barrier.wait();
    if (number != 0) return;
    Timer timer(profile, profile.classifier);
    classify(logits, stream, worker);
    profile.pictures++;
}

} // namespace vf
