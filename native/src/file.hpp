// The model file: tensors and layers, read with every size and offset checked. The format stands in docs/engine.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "aligned.hpp"

namespace vf {

enum TensorKind : uint32_t { tensor_floats = 1, tensor_codes = 2 };

enum LayerKind : uint32_t {
    layer_linear = 1,
    layer_norm = 2,
    layer_depthwise = 3,
    layer_embed = 10,
    layer_attention = 11,
    layer_feed_forward = 12,
    layer_head = 13,
    layer_norm_step = 14,
    layer_window_attention = 15,
    layer_downsample = 16,
    layer_overlapping_embed = 17,
    layer_reduced_attention = 18,
    layer_convolved_feed_forward = 19,
    layer_turn_step = 20,
};

struct TensorRecord {
    uint32_t kind, bits, rank, reserved;
    uint64_t shape[4], offset, bytes;
};
static_assert(sizeof(TensorRecord) == 64);

struct LayerRecord {
    uint32_t kind, reserved;
    int32_t ints[30];
    float floats[32];
    int32_t tensors[32];
};
static_assert(sizeof(LayerRecord) == 384);

// The bytes of a file, mapped into memory, or somebody else's.
class Bytes {
  public:
    static Bytes map(const std::string &path);
    Bytes(const void *data, size_t count) : data_(static_cast<const uint8_t *>(data)), count_(count) {}
    Bytes(Bytes &&other) noexcept : data_(other.data_), count_(other.count_), mapped_(other.mapped_) { other.mapped_ = false; }
    Bytes(const Bytes &) = delete;
    ~Bytes();
    const uint8_t *data() const { return data_; }
    size_t count() const { return count_; }

  private:
    const uint8_t *data_;
    size_t count_;
    bool mapped_ = false;
};

class File {
  public:
    // Checks the tables; throws Error where the file is damaged. `bytes` must outlive it.
    explicit File(const Bytes &bytes);

    const std::vector<LayerRecord> &layers() const { return layers_; }

    // A tensor of floats of exactly this shape, all finite. Throws Error that names the layer and the tensor.
    Array<float> floats(int layer, int slot, std::initializer_list<uint64_t> shape) const;
    // A tensor of floats with one number or `count` numbers, repeated to `count`.
    Array<float> one_or(int layer, int slot, uint64_t count) const;
    // Codes of exactly this shape, one a byte; `bits` gets how many they take in the file.
    Array<uint8_t> codes(int layer, int slot, std::initializer_list<uint64_t> shape, int &bits) const;
    bool has(int layer, int slot) const { return layers_[static_cast<size_t>(layer)].tensors[slot] >= 0; }
    // An integer of a layer between bounds.
    int integer(int layer, int slot, int low, int high, const char *what) const;
    float number(int layer, int slot, const char *what) const;

  private:
    const TensorRecord &record(int layer, int slot, uint32_t kind, std::initializer_list<uint64_t> shape) const;

    const Bytes &bytes_;
    std::vector<TensorRecord> tensors_;
    std::vector<LayerRecord> layers_;
};

} // namespace vf
