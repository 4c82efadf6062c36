// Depthwise convolutions of codes. Codes and weights less their zero points are whole numbers whose sums stay below 2^24, so float32 holds them exactly.

namespace vf::VF_NAMESPACE {

constexpr int depthwise_vectors = 4; // of channels that are summed up together

template <int V, Activation kind> VF_INLINE void depthwise_token(const DepthwiseProduct &made, int row, int column, int channel, uint8_t *out) {
    const int down = made.kernel_height / 2, right = made.kernel_width / 2;
    f32 sum[V] = {};
    for (int y = 0; y < made.kernel_height; y++) {
        const int from_row = row + y - down;
        if (from_row < 0 || from_row >= made.height) continue;
        for (int x = 0; x < made.kernel_width; x++) {
            const int from_column = column + x - right;
            if (from_column < 0 || from_column >= made.width) continue;
            const uint8_t *codes = made.codes + (size_t(from_row) * size_t(made.width) + size_t(from_column)) * made.stride + channel;
            const float *weights = made.weights + size_t(y * made.kernel_width + x) * made.weights_stride + channel;
            each<V>(
                VF_EACH(v) { sum[v] += (to_floats(from_bytes(load<u8>(codes + v * lanes))) - made.input_zero) * load<f32>(weights + v * lanes); });
        }
    }
    each<V>(VF_EACH(v) { sum[v] = sum[v] * load<f32>(made.scale + channel + v * lanes) + load<f32>(made.offset + channel + v * lanes); });
    activate<kind>(sum);
    each<V>(VF_EACH(v) { save(out + channel + v * lanes, to_codes(sum[v] * made.inverse + made.zero, all(made.highest))); });
}

template <Activation kind> static void depthwise_as(const DepthwiseProduct &made, int first, int last) {
    for (int token = first; token < last; token++) {
        const int row = token / made.width, column = token % made.width;
        uint8_t *const out = made.out + size_t(token - first) * made.out_stride;
        int channel = 0;
        for (; channel + depthwise_vectors * lanes <= made.channels; channel += depthwise_vectors * lanes)
            depthwise_token<depthwise_vectors, kind>(made, row, column, channel, out);
        for (; channel < made.channels; channel += lanes) depthwise_token<1, kind>(made, row, column, channel, out);
    }
}

static void depthwise(const DepthwiseProduct &made, int first, int last) {
    switch (made.activation) {
    case Activation::gelu: return depthwise_as<Activation::gelu>(made, first, last);
    case Activation::gelu_tanh: return depthwise_as<Activation::gelu_tanh>(made, first, last);
    case Activation::relu: return depthwise_as<Activation::relu>(made, first, last);
    case Activation::quick_gelu: return depthwise_as<Activation::quick_gelu>(made, first, last);
    default: return depthwise_as<Activation::none>(made, first, last);
    }
}

} // namespace vf::VF_NAMESPACE
