// A forward pass: rows of tokens in chunks that stay in cache, attention head by head, with a barrier between them.
#pragma once

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "layers.hpp"
#include "pool.hpp"

namespace vf {

// Rows that pass through the layers of a block together. Fewer read the weights more often from the second cache or beyond, more do not stay in it themselves:
// of 24 to 198 rows 66 to 132 were fastest for DeiT-Tiny. Where a block's weights do not stay in the second cache from one chunk to the next, all rows of a picture of
// 197 tokens pass at once: DeiT-Base takes 8 to 16 % less time so.
constexpr int most_chunk = 102, most_chunk_of_large = 208;
constexpr size_t large_block = size_t(1) << 20; // bytes of the weights of a feed-forward block

// What a picture takes: the residual stream and codes between the layers.
struct Stream {
    Array<float> x[2], mixed_floats;         // stages take turns
    Array<uint8_t> qkv, keys, mixed, hidden; // keys: of fewer tokens; hidden: what a convolution over the grid reads
    float *rows(const Stage &stage, int number, int first) { return x[number % 2].data() + size_t(first) * stage.stride; }
};

// What a worker takes; nothing is allocated while a picture is on its way.
struct Worker {
    Array<uint8_t> codes, hidden, inner;
    Array<float> floats, row_scale, float_values, float_sums, between, picture;
    Array<int32_t> sums, row_zero, row_sum;
    Array<int8_t> keys, values, unpacked;
    Array<int32_t> key_start, value_sums, query_zero, key_shift;
    std::vector<Head> computed, hallucinated;
    Array<float> mix_bias;
    Array<double> pooled;
    Array<float> logits;
    Scratch scratch;
};

// Seconds and multiply-accumulates of the parts of a forward pass.
struct Profile {
    std::vector<std::string> names;
    std::vector<double> macs;
    std::vector<std::atomic<double>> seconds;
    std::atomic<bool> on{false};
    std::atomic<long> pictures{0};
    explicit Profile(const Layers &layers);
    size_t row(size_t step, int part) const { return first[step] + size_t(part); }
    size_t embedding = 0, classifier = 0;
    std::vector<size_t> first; // row of each step
};

class Forward {
  public:
    explicit Forward(const Layers &layers);

    Stream make_stream() const;
    Worker make_worker() const;
    size_t stream_bytes() const;
    size_t worker_bytes() const;

    // One picture by `count` workers that call this together, each with its number. The logits are the same bits for any count.
    void run(const float *pixels, float *logits, Stream &stream, Worker &worker, int number, int count, Barrier &barrier, Profile &profile) const;

  private:
    class WindowHeads;
    struct Rows {
        int first, last;
    };
    struct Input {
        const uint8_t *codes;
        size_t stride;
        RowTerms terms;
    };
    Rows rows_of(int number, int count, int tokens) const;
    int chunk_unit() const { return std::min(kernels_.rows, rows_behind); }
    int chunk_of(Rows rows) const;
    Input row_terms(const Linear &linear, const uint8_t *codes, size_t stride, int rows, Worker &worker) const;
    Input coded(const Linear &linear, const float *floats, size_t floats_stride, int rows, uint8_t *codes, size_t stride, Worker &worker) const;
    Input normed(const NormedInput &input, const Linear &linear, const float *x, size_t stride, int rows, Worker &worker) const;
    void project_codes(const Attention &layer, const Projection &to, const Product &product, uint8_t *codes, Worker &worker) const;
    void keys(const Attention &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void convolve(const FeedForward &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    Input reduced(const Attention &layer, const Stage &stage, const float *x, Rows patches, Worker &worker) const;
    Input gathered(const Attention &layer, const Stage &stage, const float *x, Rows places, Worker &worker) const;
    void clear(const Linear &linear, int row, Worker &worker) const;
    void store(const Linear &linear, const Input &input, int rows, float *out, size_t stride, Worker &worker) const;
    void add(const Linear &linear, const Input &input, int rows, float *x, size_t stride, Worker &worker) const;
    void embed(const float *pixels, Stream &stream, Worker &worker, Rows rows) const;
    void queries(const Attention &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void attend(const Attention &layer, Stream &stream, Worker &worker, int number, int count) const;
    void attend_local(const Attention &layer, int head, Stream &stream, Worker &worker, Rows rows) const;
    void attend_head(const Attention &layer, int window, int head, Stream &stream, Worker &worker, Rows rows) const;
    void attend_mixed(const Attention &layer, Stream &stream, Worker &worker, Rows rows) const;
    void project(const Attention &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void code(const Linear &linear, const Input &input, int rows, const Quantizer &next, Activation activation, uint8_t *codes, size_t stride,
              Worker &worker) const;
    Input through(const Linear &linear, const Linear &next, Activation activation, const Input &input, int rows, uint8_t *codes,
                  Worker &worker) const;
    void add_hidden(const FeedForward &layer, Input input, int rows, float *x, size_t stride, Worker &worker) const;
    void feed_forward(const FeedForward &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void downsample(const Downsample &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void turn(const Turn &layer, int stage, Stream &stream, Worker &worker, Rows rows) const;
    void classify(float *logits, Stream &stream, Worker &worker) const;

    const Layers &layers_;
    const Kernels &kernels_;
    int chunk_;                                                        // rows of a chunk, at most
    size_t code_stride_, hidden_stride_, inner_stride_, float_stride_; // the largest of all layers
    size_t most_keys_, keys_bytes_, values_bytes_;                     // of one head, at most
    size_t value_channels() const { return values_bytes_ / most_keys_; }
    bool float_maps_ = false; // some are multiplied as floating-point numbers
};

} // namespace vf
