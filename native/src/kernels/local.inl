// Frozen heads whose constant map is a small kernel over the patch grid: a few multiplications a token, however many tokens there are.

namespace vf::VF_NAMESPACE {

constexpr int local_vectors = 4; // of channels that are summed up together

static void float_values(const uint8_t *codes, size_t codes_stride, int tokens, int width, float scale, float zero, float *values, size_t stride,
                         int first, float *sums) {
    for (size_t c = 0; c < stride; c++) sums[c] = 0;
    for (int token = 0; token < tokens; token++) {
        const uint8_t *from = codes + size_t(token) * codes_stride;
        float *to = values + size_t(token) * stride;
        for (int c = 0; c < width; c += lanes) {
            u8 part = {};
            if (width - c >= lanes) part = load<u8>(from + c);
            else std::memcpy(&part, from + c, size_t(width - c));
            const f32 value = (to_floats(from_bytes(part)) - zero) * scale;
            save(to + c, value);
            if (token >= first) save(sums + c, load<f32>(sums + c) + value);
        }
    }
}

// Sums of V vectors of channels for one patch.
template <int V> VF_INLINE void near_patch(const LocalHead &head, int row, int column, const float *values, f32 (&sum)[V]) {
    const int down = head.kernel_height / 2, right = head.kernel_width / 2;
    const int top = row < down ? down - row : 0, left = column < right ? right - column : 0;
    const int bottom = head.grid_height - row + down < head.kernel_height ? head.grid_height - row + down : head.kernel_height;
    const int end = head.grid_width - column + right < head.kernel_width ? head.grid_width - column + right : head.kernel_width;
    for (int y = top; y < bottom; y++) {
        const float *weights = head.kernel + size_t(y) * size_t(head.kernel_width);
        const float *from = values + (size_t(row + y - down) * size_t(head.grid_width) + size_t(column + left - right)) * head.value_stride;
        for (int x = left; x < end; x++, from += head.value_stride) each<V>(VF_EACH(v) { sum[v] += load<f32>(from + v * lanes) * weights[x]; });
    }
}

template <int V> static void local_channels(const LocalHead &head, int first, int last, int channel) {
    const float *const values = head.values + channel;
    for (int query = first; query < last; query++) {
        f32 sum[V] = {};
        if (query < head.prefix) {
            const float *weights = head.rows + size_t(query) * size_t(head.tokens);
            for (int token = 0; token < head.tokens; token++)
                each<V>(VF_EACH(v) { sum[v] += load<f32>(values + size_t(token) * head.value_stride + v * lanes) * weights[token]; });
        } else {
            const int patch = query - head.prefix;
            near_patch<V>(head, patch / head.grid_width, patch % head.grid_width, values + size_t(head.prefix) * head.value_stride, sum);
            const float scale = head.scale[patch], shared = head.shared[patch];
            each<V>(VF_EACH(v) { sum[v] = sum[v] * scale + load<f32>(head.value_sums + channel + v * lanes) * shared; });
            for (int token = 0; token < head.prefix; token++) {
                const float weight = head.columns[size_t(patch) * size_t(head.prefix) + size_t(token)];
                each<V>(VF_EACH(v) { sum[v] += load<f32>(values + size_t(token) * head.value_stride + v * lanes) * weight; });
            }
        }
        const size_t out = size_t(query) * head.output.stride;
        each<V>(VF_EACH(v) { store_channels(sum[v], head.output, out, channel + v * lanes, head.width); });
    }
}

static void local(const LocalHead &head, int first, int last) {
    int channel = 0;
    for (; channel + local_vectors * lanes <= head.width; channel += local_vectors * lanes) local_channels<local_vectors>(head, first, last, channel);
    for (; channel < head.width; channel += lanes) local_channels<1>(head, first, last, channel);
}

} // namespace vf::VF_NAMESPACE
