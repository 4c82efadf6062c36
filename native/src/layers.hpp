// The layers of a model, unpacked into what the kernels read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "file.hpp"
#include "kernels.hpp"

namespace vf {

// How floats become codes: round(x / scale + zero) within 0 .. 2^bits - 1. Dynamic: scale and zero point are each token's own.
struct Quantizer {
    int bits = 8;
    bool dynamic = false;
    float scale = 1, zero = 0;
    float inverse() const { return 1.0f / scale; }
    float highest() const { return float((1 << bits) - 1); }
};

// Weights of a linear layer: y = sum scale + offset by column. Weights stand for (code - zero point); where that does not fit 8 bits with a sign,
// 128 is taken off instead, and `column_shift` says what is missing.
struct Linear {
    int inputs = 0, outputs = 0, columns = 0;
    Quantizer input;
    Array<int8_t> weights;
    Array<int32_t> start, column_sums, column_shift;
    Array<float> scale, offset; // [columns], the scale of a static input included
    bool shifted = false;
    Packed packed;
};

struct Norm {
    int channels = 0;
    float epsilon = 0;
    Array<float> gamma, beta; // to whole vectors
};

// A norm whose output is a linear layer's input.
struct NormedInput {
    const Norm *norm = nullptr;
    Array<float> gain, shift; // with the quantizer in them, unless that is dynamic
};

struct Embed {
    int channels = 0, height = 0, width = 0, patch_height = 0, patch_width = 0, prefix = 0;
    const Linear *linear = nullptr;
    Array<float> prefix_tokens, positions;
    int patches() const { return (height / patch_height) * (width / patch_width); }
};

struct HeadQuantizers {
    Array<float> query_scale, query_zero, key_scale, key_zero, value_scale, value_zero, map_step, map_zero;
};

struct Attention {
    int layer = 0;
    NormedInput input;
    const Linear *qkv = nullptr, *proj = nullptr;
    int heads = 0, width = 0, logit_heads = 0, constant_heads = 0, hallucinated = 0, tokens_out = 0;
    int mode = 0, map_bits = 8, zero_code = 255, bits = 8;
    float logit_scale = 1;
    HeadQuantizers quantizers;
    Array<float> qkv_scale, qkv_offset; // of the product, with the quantizers of queries, keys and values in them
    size_t map_stride = 0;
    Array<uint8_t> frozen;    // [heads that move][tokens][map_stride], or empty
    Array<float> frozen_step; // [heads that move] of entries with a grid of their own, or empty
    Array<uint8_t> frozen_even, frozen_odd;
    Array<int32_t> frozen_even_sums, frozen_odd_sums; // [heads that move][tokens]
    Array<uint8_t> constants;                         // [constant heads][tokens][map_stride]
    Array<float> row_scale, row_zero;
    Array<int32_t> row_sums;
    // Constant maps as kernels over the patch grid, where they are not whole.
    int grid_height = 0, grid_width = 0, local_height = 0, local_width = 0;
    Array<float> local_kernel, local_scale, local_shared, local_rows, local_columns;
    int kernel = 0, kernel_first = 0; // of the hallucination's convolution
    Array<float> mix, mix_bias, convolution;
    int moving() const { return heads - constant_heads; }
    int query_column(int head) const { return head * width; }
    int key_column(int head) const { return (logit_heads + head) * width; }
    int value_column(int head) const { return (2 * logit_heads + head) * width; }
};

struct FeedForward {
    int layer = 0;
    NormedInput input;
    const Linear *first = nullptr, *second = nullptr, *third = nullptr;
    Activation activation = Activation::gelu;
    int tokens_out = 0;
};

struct Classifier {
    const Norm *norm = nullptr;
    const Linear *linear = nullptr, *second = nullptr;
    int pooling = 0, prefix = 0;
    bool norm_last = false;
};

struct Step {
    LayerKind kind;
    int index; // into the layers of its kind
};

// Everything that is read while a model runs; never changed once it is made.
struct Layers {
    const Kernels *kernels = nullptr;
    int channels = 0, tokens = 0;
    Embed embed;
    std::vector<std::unique_ptr<Linear>> linears; // by index of the layer table, or null
    std::vector<std::unique_ptr<Norm>> norms;
    std::vector<Attention> attention;
    std::vector<FeedForward> feed_forward;
    std::vector<int> norm_steps; // indices of norms
    Classifier classifier;
    std::vector<Step> steps; // in order, without embedding and classifier
    size_t bytes = 0;

    int classes() const { return classifier.linear->outputs; }
};

// Reads and checks all layers. Throws Error where the file is damaged.
Layers read_layers(const File &file, const Kernels &kernels);

Linear make_linear(int inputs, int outputs, const Quantizer &input, const Array<uint8_t> &codes, const Array<float> &scale, const Array<float> &zero,
                   const Array<float> &bias, const Kernels &kernels);

// How sums of codes up to x_max times weights within +-w_max are taken without a dot product in hardware.
void choose_sums(Packed &packed, int x_max, int w_max);

} // namespace vf
