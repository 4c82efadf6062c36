// LayerNorm over rows of floats, and their codes.

namespace vf::VF_NAMESPACE {

struct Moments {
    float mean, inverse_deviation;
};

VF_INLINE Moments moments(const float *x, int channels, float epsilon) {
    f32 sum = {};
    int whole = channels / lanes * lanes;
    for (int c = 0; c < whole; c += lanes) sum += load<f32>(x + c);
    float total = sum_of(sum);
    for (int c = whole; c < channels; c++) total += x[c];
    float mean = total / float(channels);
    f32 squares = {};
    for (int c = 0; c < whole; c += lanes) {
        f32 off = load<f32>(x + c) - mean;
        squares += off * off;
    }
    float square = sum_of(squares);
    for (int c = whole; c < channels; c++) square += (x[c] - mean) * (x[c] - mean);
    return {mean, 1.0f / std::sqrt(square / float(channels) + epsilon)};
}

// Rows of x, gain and shift reach to whole vectors; what is behind the channels is of no use.
static void norm_codes(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float highest,
                       uint8_t *codes, size_t stride) {
    for (int row = 0; row < rows; row++, x += x_stride, codes += stride) {
        Moments found = moments(x, channels, epsilon);
        for (int c = 0; c < channels; c += lanes) {
            f32 y = (load<f32>(x + c) - found.mean) * found.inverse_deviation * load<f32>(gain + c) + load<f32>(shift + c);
            save(codes + c, to_codes(y, all(highest)));
        }
    }
}

static void norm(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float *out,
                 size_t stride) {
    for (int row = 0; row < rows; row++, x += x_stride, out += stride) {
        Moments found = moments(x, channels, epsilon);
        for (int c = 0; c < channels; c += lanes) {
            f32 y = (load<f32>(x + c) - found.mean) * found.inverse_deviation * load<f32>(gain + c) + load<f32>(shift + c);
            save(out + c, y);
        }
    }
}

static void quantize(const float *x, size_t count, float inverse, float zero, float highest, uint8_t *codes) {
    size_t whole = count / lanes * lanes;
    for (size_t i = 0; i < whole; i += lanes) save(codes + i, to_codes(load<f32>(x + i) * inverse + zero, all(highest)));
    for (size_t i = whole; i < count; i++) {
        f32 one = all(x[i]) * inverse + zero;
        codes[i] = to_codes(one, all(highest))[0];
    }
}

} // namespace vf::VF_NAMESPACE
