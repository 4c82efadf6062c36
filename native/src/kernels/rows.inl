// LayerNorm over rows of floats, and their codes.

namespace vf::VF_NAMESPACE {

// Codes of R rows of V vectors, all of which lie within 0..highest once rounded.
template <int R, int V> VF_INLINE void save_codes(uint8_t *place, size_t stride, f32 (&y)[R * V], f32 highest) {
#if VF_LANES == 16
    if constexpr (R * V == 4) {
        const Bytes codes = four_codes(y, highest);
        if constexpr (R == 1) save(place, codes);
        else each<R>(VF_EACH(r) { save(place + size_t(r) * stride, part_of<r, R>(codes)); });
        return;
    }
#endif
    each<R>(VF_EACH(r) { each<V>(VF_EACH(v) { save(place + size_t(r) * stride + v * lanes, to_codes(y[r * V + v], highest)); }); });
}

constexpr int rows_together = 4;

// Means and inverse deviations of R rows, side by side so that their sums do not wait for each other.
template <int R> struct Moments {
    float mean[R], inverse_deviation[R];
};

template <int R> VF_INLINE Moments<R> moments(const float *x, size_t stride, int channels, float epsilon) {
    const int whole = channels / lanes * lanes;
    f32 sum[R] = {}, squares[R] = {};
    Moments<R> made;
    for (int c = 0; c < whole; c += lanes) each<R>(VF_EACH(r) { sum[r] += load<f32>(x + r * stride + c); });
    each<R>(VF_EACH(r) {
        float total = sum_of(sum[r]);
        for (int c = whole; c < channels; c++) total += x[r * stride + size_t(c)];
        made.mean[r] = total / float(channels);
    });
    for (int c = 0; c < whole; c += lanes)
        each<R>(VF_EACH(r) {
            f32 off = load<f32>(x + r * stride + c) - made.mean[r];
            squares[r] += off * off;
        });
    each<R>(VF_EACH(r) {
        float square = sum_of(squares[r]);
        for (int c = whole; c < channels; c++) {
            float off = x[r * stride + size_t(c)] - made.mean[r];
            square += off * off;
        }
        made.inverse_deviation[r] = 1.0f / std::sqrt(square / float(channels) + epsilon);
    });
    return made;
}

// Calls store(row, channel, vectors) with normalized rows. Rows of x, gain and shift reach to whole vectors; what is behind the channels is of no use.
template <int R, int V, typename Store>
VF_INLINE void normed_part(const float *x, size_t stride, const Moments<R> &found, const float *gain, const float *shift, int c, Store store) {
    f32 by[V], plus[V];
    each<V>(VF_EACH(v) { by[v] = load<f32>(gain + c + v * lanes), plus[v] = load<f32>(shift + c + v * lanes); });
    each<R>(VF_EACH(r) {
        f32 y[V];
        each<V>(VF_EACH(v) { y[v] = (load<f32>(x + r * stride + c + v * lanes) - found.mean[r]) * found.inverse_deviation[r] * by[v] + plus[v]; });
        store(r, c, y);
    });
}
template <int R, typename Store>
VF_INLINE void normed_rows(const float *x, size_t stride, int channels, float epsilon, const float *gain, const float *shift, Store store) {
    const Moments<R> found = moments<R>(x, stride, channels, epsilon);
    int c = 0;
    if constexpr (lanes == 16)
        for (; c + 4 * lanes <= channels; c += 4 * lanes) normed_part<R, 4>(x, stride, found, gain, shift, c, store);
    for (; c < channels; c += lanes) normed_part<R, 1>(x, stride, found, gain, shift, c, store);
}

template <typename Store>
VF_INLINE void norm_all(const float *x, size_t stride, int rows, int channels, float epsilon, const float *gain, const float *shift, Store store) {
    int row = 0;
    for (; row + rows_together <= rows; row += rows_together)
        normed_rows<rows_together>(x + size_t(row) * stride, stride, channels, epsilon, gain, shift,
                                   [&](int r, int c, auto &y) __attribute__((always_inline)) { store(row + r, c, y); });
    for (; row < rows; row++)
        normed_rows<1>(x + size_t(row) * stride, stride, channels, epsilon, gain, shift,
                       [&](int, int c, auto &y) __attribute__((always_inline)) { store(row, c, y); });
}

static void norm_codes(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float highest,
                       uint8_t *codes, size_t stride) {
    norm_all(x, x_stride, rows, channels, epsilon, gain, shift, [=]<int V>(int row, int c, f32(&y)[V]) __attribute__((always_inline)) {
        save_codes<1, V>(codes + size_t(row) * stride + size_t(c), 0, y, all(highest));
    });
}

// Floats are wanted where a layer takes each token's own range, or between stages: row by row, which keeps the library small.
static void norm(const float *x, size_t x_stride, int rows, int channels, float epsilon, const float *gain, const float *shift, float *out,
                 size_t stride) {
    for (int row = 0; row < rows; row++, x += x_stride, out += stride)
        normed_rows<1>(x, 0, channels, epsilon, gain, shift, [=]<int V>(int, int c, f32(&y)[V]) __attribute__((always_inline)) {
            each<V>(VF_EACH(v) { save(out + c + v * lanes, y[v]); });
        });
}

// Sums of codes by row; codes behind `count` must not be counted, whatever they are.
static void sum_rows(const uint8_t *codes, size_t stride, int rows, int count, int32_t *sums) {
    const int whole = count / (4 * lanes) * 4 * lanes;
    for (int row = 0; row < rows; row++, codes += stride) {
        i32 sum = {};
        for (int c = 0; c < whole; c += 4 * lanes) sum = dot<Sums::split>(sum, load<i32>(codes + c), all_ints(0x01010101));
        int32_t total = sum_of(sum);
        for (int c = whole; c < count; c++) total += codes[c];
        sums[row] = total;
    }
}

// Whether `quotient` rounds as a division does: not with a significand of ones alone, and not where inverses or rests leave the normal numbers.
VF_INLINE bool has_exact_quotients(float scale) {
    uint32_t bits;
    std::memcpy(&bits, &scale, 4);
    return (bits & 0x7FFFFF) != 0x7FFFFF && scale > 1e-20f && scale < 1e20f;
}

// round(x / scale) + zero within 0..highest, with the quotient of a true division and ties to even before the zero point is added: pixels lie on a grid of
// their own, and where that meets the quantizer's every single one is a tie.
static void quantize(const float *x, size_t count, float scale, float zero, float highest, uint8_t *codes) {
    const f32 low = all(-zero), high = all(highest - zero), scales = all(scale), inverse = all(1.0f / scale);
    const i32 shift = all_ints(int32_t(zero));
    const bool dividing = !has_exact_quotients(scale);
    const size_t whole = count / lanes * lanes;
    auto codes_of = [=](f32 y) __attribute__((always_inline)) { return low_bytes(nearest(smaller(larger(y, low), high)) + shift); };
    if (dividing)
        for (size_t i = 0; i < whole; i += lanes) save(codes + i, codes_of(load<f32>(x + i) / scale));
    else
        for (size_t i = 0; i < whole; i += lanes) save(codes + i, codes_of(quotient(load<f32>(x + i), scales, inverse)));
    for (size_t i = whole; i < count; i++) codes[i] = codes_of(all(x[i]) / scale)[0];
}

} // namespace vf::VF_NAMESPACE
