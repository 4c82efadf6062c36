#include "forward.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace vf {

namespace {

// Rows that pass through the layers of a block together. Fewer read the weights more often from the second cache or beyond, more do not stay in it themselves:
// of 24 to 198 rows 66 to 132 were fastest, for DeiT-Tiny and DeiT-Small alike.
constexpr int chunk = 17 * most_rows;

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

double macs_of(const Linear &linear, double rows) { return rows * linear.inputs * linear.outputs; }

} // namespace

Profile::Profile(const Layers &layers) {
    auto add = [&](const std::string &name, double count) {
        names.push_back(name), macs.push_back(count);
        return names.size() - 1;
    };
    embedding = add("embed", macs_of(*layers.embed.linear, layers.embed.patches()));
    double tokens = layers.tokens;
    for (const Step &step : layers.steps) {
        std::string name = "layer " + std::to_string(first.size());
        if (step.kind == layer_attention) {
            const Attention &found = layers.attention[size_t(step.index)];
            double product = double(found.width) * tokens * found.tokens_out;
            first.push_back(add(name + " queries, keys, values", macs_of(*found.qkv, tokens)));
            add(name + " maps", product * (found.heads + found.logit_heads));
            add(name + " projection", macs_of(*found.proj, found.tokens_out));
        } else if (step.kind == layer_feed_forward) {
            const FeedForward &found = layers.feed_forward[size_t(step.index)];
            double count = macs_of(*found.first, found.tokens_out) + macs_of(*found.second, found.tokens_out);
            first.push_back(add(name + " feed-forward", count + (found.third ? macs_of(*found.third, found.tokens_out) : 0)));
        } else {
            first.push_back(add(name + " norm", 0));
        }
    }
    classifier = add("classifier", macs_of(*layers.classifier.linear, 1));
    seconds = std::vector<std::atomic<double>>(names.size());
}

Forward::Forward(const Layers &layers) : layers_(layers), kernels_(*layers.kernels) {
    size_t codes = 0, hidden = 1, inner = 1, qkv = 1, mixed = 1, width = 1;
    auto reaches = [](size_t &size, int count) { size = std::max(size, round_up(size_t(count) + 64, 64)); };
    reaches(codes, std::max(layers.embed.linear->inputs, layers.channels));
    for (const Attention &layer : layers.attention) {
        reaches(qkv, layer.qkv->columns), reaches(mixed, layer.proj->inputs), reaches(codes, layer.proj->inputs);
        width = std::max(width, round_up(size_t(layer.width), size_t(kernels_.lanes)));
        wide_ = wide_ || (layer.mode == 1 && layer.map_bits > 4);
    }
    for (const FeedForward &layer : layers.feed_forward) {
        reaches(hidden, layer.first->columns);
        if (layer.third) reaches(inner, layer.second->columns);
    }
    x_stride_ = round_up(size_t(layers.channels), 64) + 64;
    qkv_stride_ = qkv, mixed_stride_ = mixed, code_stride_ = codes, hidden_stride_ = hidden, inner_stride_ = inner;
    float_stride_ = std::max({codes, hidden, inner, x_stride_});
    size_t tokens = round_up(size_t(layers.tokens), 64);
    keys_bytes_ = tokens * round_up(width, 4), values_bytes_ = tokens * width;
}

Stream Forward::make_stream() const {
    Stream made;
    size_t tokens = size_t(layers_.tokens);
    bool dynamic = false;
    for (const Attention &layer : layers_.attention) dynamic = dynamic || layer.proj->input.dynamic;
    made.x.resize(tokens * x_stride_), made.qkv.resize(tokens * qkv_stride_), made.mixed.resize(tokens * mixed_stride_);
    if (dynamic) made.mixed_floats.resize(tokens * mixed_stride_);
    return made;
}

size_t Forward::stream_bytes() const { return size_t(layers_.tokens) * (4 * x_stride_ + qkv_stride_ + mixed_stride_); }

Worker Forward::make_worker() const {
    Worker made;
    size_t rows = size_t(chunk), columns = round_up(size_t(layers_.tokens), 64), channels = values_bytes_ / columns;
    made.codes.resize(rows * code_stride_), made.hidden.resize(rows * hidden_stride_), made.inner.resize(rows * inner_stride_);
    made.floats.resize(rows * float_stride_), made.row_scale.resize(rows), made.row_zero.resize(rows), made.row_sum.resize(rows);
    made.sums.resize(size_t(most_rows) * size_t(kernels_.panel));
    made.keys.resize(keys_bytes_), made.values.resize(values_bytes_), made.key_start.resize(columns), made.value_sums.resize(channels);
    if (wide_) made.wide_values.resize(values_bytes_ + 2 * channels);
    for (const Attention &layer : layers_.attention)
        if (layer.local_height) made.float_values.resize(columns * channels), made.float_sums.resize(channels);
    int logit_heads = 0, kernel = 0;
    for (const Attention &layer : layers_.attention)
        if (layer.hallucinated) {
            logit_heads = std::max(logit_heads, layer.logit_heads), kernel = std::max(kernel, layer.kernel);
        }
    made.pooled.resize(size_t(layers_.channels));
    const Linear *second = layers_.classifier.second;
    made.logits.resize(size_t(std::max(layers_.classifier.linear->columns, second ? second->columns : 0)));
    made.computed.resize(size_t(logit_heads)), made.query_zero.resize(size_t(logit_heads)), made.key_shift.resize(size_t(logit_heads));
    if (logit_heads) {
        made.keys.resize(keys_bytes_ * size_t(logit_heads)), made.key_start.resize(columns * size_t(logit_heads));
        size_t most = size_t(most_rows + kernel);
        made.scratch.mixed.resize(most * size_t(logit_heads) * columns + (most + 2) * (columns + 64));
    }
    made.scratch.logits.resize(most_rows * columns), made.scratch.planes.resize(2 * most_rows * columns);
    made.scratch.sums.resize(4 * size_t(most_rows) * size_t(kernels_.panel));
    if (wide_) made.scratch.wide.resize(most_rows * columns);
    return made;
}

size_t Forward::worker_bytes() const {
    size_t columns = round_up(size_t(layers_.tokens), 64);
    return size_t(chunk) * (code_stride_ + hidden_stride_ + inner_stride_ + 4 * float_stride_) + keys_bytes_ + values_bytes_ +
           most_rows * columns * 6;
}

// A worker's rows, whole tiles but for the last.
Forward::Rows Forward::rows_of(int number, int count, int tokens) const {
    int tiles = (tokens + kernels_.rows - 1) / kernels_.rows;
    int first = int(int64_t(tiles) * number / count) * kernels_.rows, last = int(int64_t(tiles) * (number + 1) / count) * kernels_.rows;
    return {std::min(first, tokens), std::min(last, tokens)};
}

// What belongs to rows of codes besides them: sums where weights are shifted.
Forward::Input Forward::row_terms(const Linear &linear, const uint8_t *codes, size_t stride, int rows, Worker &worker) const {
    Input made = {codes, stride, {}};
    if (linear.shifted) {
        kernels_.sum_rows(codes, stride, rows, linear.inputs, worker.row_sum.data());
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

Forward::Input Forward::normed(const NormedInput &input, const Linear &linear, const float *x, int rows, Worker &worker) const {
    if (linear.input.dynamic) {
        kernels_.norm(x, x_stride_, rows, layers_.channels, input.norm->epsilon, input.gain.data(), input.shift.data(), worker.floats.data(),
                      float_stride_);
        return coded(linear, worker.floats.data(), float_stride_, rows, worker.codes.data(), code_stride_, worker);
    }
    kernels_.norm_codes(x, x_stride_, rows, layers_.channels, input.norm->epsilon, input.gain.data(), input.shift.data(), linear.input.highest(),
                        worker.codes.data(), code_stride_);
    return row_terms(linear, worker.codes.data(), code_stride_, rows, worker);
}

// x += the linear layer.
void Forward::add(const Linear &linear, const Input &input, int rows, float *x, Worker &worker) const {
    Product product = {input.codes, input.stride, rows, 0, input.terms};
    Epilogue how;
    how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.add = x, how.stride = x_stride_;
    kernels_.product(product, linear.packed, how, worker.sums.data());
}

void Forward::embed(const float *pixels, Stream &stream, Worker &worker, Rows rows) const {
    const Embed &layer = layers_.embed;
    const Linear &linear = *layer.linear;
    size_t channels = size_t(layers_.channels), across = size_t(layer.width / layer.patch_width);
    for (int begin = rows.first; begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        for (int token = begin; token < end; token++) {
            float *x = stream.x.data() + size_t(token) * x_stride_;
            bool prefix = token < layer.prefix;
            const float *start = prefix                    ? layer.prefix_tokens.data() + size_t(token) * channels
                                 : layer.positions.empty() ? nullptr
                                                           : layer.positions.data() + size_t(token - layer.prefix) * channels;
            if (start) std::memcpy(x, start, channels * sizeof(float));
            else std::memset(x, 0, channels * sizeof(float));
            if (prefix) continue;
            size_t patch = size_t(token - layer.prefix), place = 0;
            float *flat = worker.floats.data() + size_t(token - begin) * float_stride_;
            for (int c = 0; c < layer.channels; c++)
                for (int y = 0; y < layer.patch_height; y++, place += size_t(layer.patch_width)) {
                    size_t down = patch / across * size_t(layer.patch_height) + size_t(y), right = patch % across * size_t(layer.patch_width);
                    const float *from = pixels + (size_t(c) * size_t(layer.height) + down) * size_t(layer.width) + right;
                    std::memcpy(flat + place, from, size_t(layer.patch_width) * sizeof(float));
                }
        }
        int first = std::max(begin, layer.prefix);
        if (first >= end) continue;
        Input input = coded(linear, worker.floats.data() + size_t(first - begin) * float_stride_, float_stride_, end - first, worker.codes.data(),
                            code_stride_, worker);
        add(linear, input, end - first, stream.x.data() + size_t(first) * x_stride_, worker);
    }
}

void Forward::queries(const Attention &layer, Stream &stream, Worker &worker, Rows rows) const {
    const Linear &linear = *layer.qkv;
    for (int begin = rows.first; begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        Input input = normed(layer.input, linear, stream.x.data() + size_t(begin) * x_stride_, end - begin, worker);
        Product product = {input.codes, input.stride, end - begin, 0, input.terms};
        if (begin >= layer.tokens_out) product.first_column = layer.logit_heads * layer.width;
        Epilogue how;
        how.scale = layer.qkv_scale.data(), how.offset = layer.qkv_offset.data(), how.folded = true, how.highest = float((1 << layer.bits) - 1);
        how.codes = stream.qkv.data() + size_t(begin) * qkv_stride_, how.stride = qkv_stride_;
        kernels_.product(product, linear.packed, how, worker.sums.data());
    }
}

void Forward::project(const Attention &layer, Stream &stream, Worker &worker, Rows rows) const {
    const Linear &linear = *layer.proj;
    for (int begin = rows.first; begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last);
        Input input = linear.input.dynamic
                          ? coded(linear, stream.mixed_floats.data() + size_t(begin) * mixed_stride_, mixed_stride_, end - begin, worker.codes.data(),
                                  code_stride_, worker)
                          : row_terms(linear, stream.mixed.data() + size_t(begin) * mixed_stride_, mixed_stride_, end - begin, worker);
        add(linear, input, end - begin, stream.x.data() + size_t(begin) * x_stride_, worker);
    }
}

void Forward::feed_forward(const FeedForward &layer, Stream &stream, Worker &worker, Rows rows) const {
    for (int begin = rows.first; begin < rows.last; begin += chunk) {
        int end = std::min(begin + chunk, rows.last), count = end - begin;
        float *x = stream.x.data() + size_t(begin) * x_stride_;
        Input input = normed(layer.input, *layer.first, x, count, worker);
        // The next layer's codes straight from the sums of this one, or floats where that layer takes each token's own range.
        auto through = [&](const Linear &linear, const Linear &next, Activation activation, uint8_t *codes, size_t stride) {
            Product product = {input.codes, input.stride, count, 0, input.terms};
            Epilogue how;
            how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.activation = activation;
            if (next.input.dynamic) {
                how.store = worker.floats.data(), how.stride = float_stride_;
                kernels_.product(product, linear.packed, how, worker.sums.data());
                input = coded(next, worker.floats.data(), float_stride_, count, codes, stride, worker);
                return;
            }
            how.codes = codes, how.stride = stride;
            how.inverse = next.input.inverse(), how.zero = next.input.zero, how.highest = next.input.highest();
            kernels_.product(product, linear.packed, how, worker.sums.data());
            input = row_terms(next, codes, stride, count, worker);
        };
        through(*layer.first, *layer.second, layer.activation, worker.hidden.data(), hidden_stride_);
        const Linear *last = layer.second;
        if (layer.third) {
            through(*layer.second, *layer.third, Activation::none, worker.inner.data(), inner_stride_);
            last = layer.third;
        }
        add(*last, input, count, x, worker);
    }
}

void Forward::classify(float *logits, Stream &stream, Worker &worker) const {
    const Classifier &layer = layers_.classifier;
    size_t channels = size_t(layers_.channels);
    auto normalize = [&](float *x) {
        if (layer.norm)
            kernels_.norm(x, x_stride_, 1, int(channels), layer.norm->epsilon, layer.norm->gamma.data(), layer.norm->beta.data(), x, x_stride_);
    };
    int tokens = layer.pooling == 1 ? layers_.tokens : layer.pooling == 2 ? 2 : 1;
    if (!layer.norm_last)
        for (int token = 0; token < tokens; token++) normalize(stream.x.data() + size_t(token) * x_stride_);
    float *pooled = stream.x.data();
    if (layer.pooling == 1) {
        Array<double> &sum = worker.pooled;
        std::fill(sum.begin(), sum.end(), 0.0);
        for (int token = layer.prefix; token < tokens; token++)
            for (size_t c = 0; c < channels; c++) sum[c] += stream.x[size_t(token) * x_stride_ + c];
        for (size_t c = 0; c < channels; c++) pooled[c] = float(sum[c] / (tokens - layer.prefix));
    }
    if (layer.norm_last) normalize(pooled);
    std::fill_n(logits, layer.linear->outputs, 0.0f);
    auto head = [&](const Linear &linear, const float *x, float share) {
        Input input = coded(linear, x, x_stride_, 1, worker.codes.data(), code_stride_, worker);
        Array<float> &out = worker.logits;
        Product product = {input.codes, input.stride, 1, 0, input.terms};
        Epilogue how;
        how.scale = linear.scale.data(), how.offset = linear.offset.data(), how.store = out.data(), how.stride = out.size();
        kernels_.product(product, linear.packed, how, worker.sums.data());
        for (int c = 0; c < linear.outputs; c++) logits[c] += share * out[size_t(c)];
    };
    head(*layer.linear, pooled, layer.second ? 0.5f : 1.0f);
    if (layer.second) head(*layer.second, stream.x.data() + x_stride_, 0.5f);
}

void Forward::run(const float *pixels, float *logits, Stream &stream, Worker &worker, int number, int count, Barrier &barrier,
                  Profile &profile) const {
    Rows rows = rows_of(number, count, layers_.tokens);
    {
        Timer timer(profile, profile.embedding);
        embed(pixels, stream, worker, rows);
    }
    for (size_t step = 0; step < layers_.steps.size(); step++) {
        const Step &found = layers_.steps[step];
        if (found.kind == layer_attention) {
            const Attention &layer = layers_.attention[size_t(found.index)];
            {
                Timer timer(profile, profile.row(step, qkv_part));
                queries(layer, stream, worker, rows);
            }
            barrier.wait();
            {
                Timer timer(profile, profile.row(step, map_part));
                attend(layer, stream, worker, number, count);
            }
            barrier.wait();
            Timer timer(profile, profile.row(step, projection_part));
            rows = rows_of(number, count, layer.tokens_out);
            project(layer, stream, worker, rows);
        } else if (found.kind == layer_feed_forward) {
            const FeedForward &layer = layers_.feed_forward[size_t(found.index)];
            Timer timer(profile, profile.row(step, only_part));
            feed_forward(layer, stream, worker, rows_of(number, count, layer.tokens_out));
        } else {
            const Norm &norm = *layers_.norms[size_t(found.index)];
            Timer timer(profile, profile.row(step, only_part));
            float *x = stream.x.data() + size_t(rows.first) * x_stride_;
            kernels_.norm(x, x_stride_, rows.last - rows.first, norm.channels, norm.epsilon, norm.gamma.data(), norm.beta.data(), x, x_stride_);
        }
    }
    barrier.wait();
    if (number != 0) return;
    Timer timer(profile, profile.classifier);
    classify(logits, stream, worker);
    profile.pictures++;
}

} // namespace vf
