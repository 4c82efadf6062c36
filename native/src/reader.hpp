// Reads the layers of a model file, checked one by one as they come.
#pragma once

#include <memory>
#include <vector>

#include "layers.hpp"

namespace vf {

constexpr int most_channels = 1 << 14, most_tokens = 1 << 16, most_heads = 256, most_width = 1024, most_window = 4096;

void check_zero(float value);  // a zero point: a small integer
void check_scale(float value); // positive

class Reader {
  public:
    Reader(const File &file, const Kernels &kernels);
    Layers read();

  private:
    size_t lanes() const { return size_t(made_.kernels->lanes); }
    int integer(int layer, int slot, int low, int high, const char *what) const { return file_.integer(layer, slot, low, high, what); }
    Stage &stage() { return made_.stages.back(); }
    void add_stage(int layer, int prefix, int height, int width, int channels);
    void add_step(LayerKind kind, size_t index) { made_.steps.push_back({kind, int(index), int(made_.stages.size()) - 1}); }

    // Objects, and what names them.
    void linear(int layer);
    void norm(int layer);
    void depthwise(int layer);
    template <typename T> const T *named(const std::vector<std::unique_ptr<T>> &known, int layer, int slot, const char *what) const;
    const Linear *linear_of(int layer, int slot, int inputs, int outputs) const;
    const Norm *norm_of(int layer, int slot, int channels) const;
    bool names(int layer, int slot) const { return file_.layers()[size_t(layer)].ints[slot] >= 0; }
    Projection projection(const Norm *norm, const Linear *linear) const;
    NormedInput normed(const Norm *norm, const Linear &next) const;

    // Steps, in read_attention.cpp where they are about attention.
    void embed(int layer, bool overlapping);
    void attention(int layer, LayerKind kind);
    void reduction(int layer, Attention &made);
    void windows(int layer, Attention &made);
    void bits(int layer, Attention &made);
    void quantizers(int layer, Attention &made);
    void fold(Attention &made);
    Array<uint8_t> padded_maps(int layer, int slot, int count, const Attention &made, uint8_t fill);
    void bias(int layer, Attention &made);
    void maps(int layer, Attention &made);
    void frozen_apart(int layer, Attention &made);
    void hallucination(int layer, Attention &made);
    void near(int layer, Attention &made);
    void local(int layer, Attention &made);
    void feed_forward(int layer, bool convolved);
    void downsample(int layer);
    void norm_step(int layer);
    void turn_step(int layer); // in turn.cpp
    void head(int layer);

    const File &file_;
    Layers made_;
};

} // namespace vf
