// Vectors of floats, integers and bytes, as the compiler's own vector types; what they lack stands here, once per instruction set.
// The including file defines VF_NAMESPACE, VF_LANES and the function `dot`'s instruction by VF_DOT_*.

#if defined(VF_DOT_VNNI512) || defined(VF_DOT_VNNI256) || defined(VF_DOT_AVX2)
#include <immintrin.h>
#elif defined(VF_DOT_I8MM) || defined(VF_DOT_SDOT)
#include <arm_neon.h>
#endif

namespace vf::VF_NAMESPACE {

constexpr int lanes = VF_LANES;
typedef float f32 __attribute__((vector_size(lanes * 4)));
typedef int32_t i32 __attribute__((vector_size(lanes * 4)));
typedef uint8_t u8 __attribute__((vector_size(lanes)));        // one byte a lane
typedef uint8_t Bytes __attribute__((vector_size(lanes * 4))); // four bytes a lane
typedef int16_t i16 __attribute__((vector_size(lanes * 4)));
typedef int16_t Half __attribute__((vector_size(lanes * 2))); // one 16-bit number a lane

#define VF_INLINE static inline __attribute__((always_inline))

template <typename V> VF_INLINE V load(const void *from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <typename V> VF_INLINE void save(void *to, V value) { std::memcpy(to, &value, sizeof value); }

VF_INLINE f32 all(float value) { return f32{} + value; }
VF_INLINE i32 all_ints(int32_t value) { return i32{} + value; }
VF_INLINE f32 to_floats(i32 value) { return __builtin_convertvector(value, f32); }
// Of a number and none (NaN) the second, as the processor's own instructions do it.
#if VF_LANES == 16
VF_INLINE f32 larger(f32 a, f32 b) { return (f32)_mm512_max_ps((__m512)a, (__m512)b); }
VF_INLINE f32 smaller(f32 a, f32 b) { return (f32)_mm512_min_ps((__m512)a, (__m512)b); }
#elif VF_LANES == 8
VF_INLINE f32 larger(f32 a, f32 b) { return (f32)_mm256_max_ps((__m256)a, (__m256)b); }
VF_INLINE f32 smaller(f32 a, f32 b) { return (f32)_mm256_min_ps((__m256)a, (__m256)b); }
#else
VF_INLINE f32 larger(f32 a, f32 b) { return a > b ? a : b; }
VF_INLINE f32 smaller(f32 a, f32 b) { return a < b ? a : b; }
#endif
VF_INLINE i32 larger(i32 a, i32 b) { return a > b ? a : b; }
VF_INLINE i32 smaller(i32 a, i32 b) { return a < b ? a : b; }

// 1.5 * 2^23: adding it leaves the nearest integer (ties to even) in the lowest bits, for |x| < 2^22.
constexpr float magic = 12582912.0f;
constexpr int32_t magic_bits = 0x4B400000;
VF_INLINE i32 bits_of(f32 value) { return (i32)value; }
VF_INLINE i32 nearest(f32 value) { return bits_of(value + magic) - magic_bits; }
// The lowest byte and the lowest 16 bits of every lane, and bytes as integers. Compilers take vectors apart for what they could convert.
#if VF_LANES == 16
VF_INLINE u8 low_bytes(i32 value) { return (u8)_mm512_cvtepi32_epi8((__m512i)value); }
VF_INLINE Half low_halves(i32 value) { return (Half)_mm512_cvtepi32_epi16((__m512i)value); }
VF_INLINE i32 from_bytes(u8 value) { return (i32)_mm512_cvtepu8_epi32((__m128i)value); }
#elif VF_LANES == 8
VF_INLINE u8 low_bytes(i32 value) {
    const __m256i lowest =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)value, lowest);
    __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    return (u8)_mm_cvtsi128_si64(both);
}
VF_INLINE Half low_halves(i32 value) {
    __m256i halves = _mm256_packs_epi32((__m256i)value, (__m256i)value);
    return (Half)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
}
VF_INLINE i32 from_bytes(u8 value) { return (i32)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)value)); }
#else
VF_INLINE u8 low_bytes(i32 value) { return __builtin_convertvector(value, u8); }
VF_INLINE Half low_halves(i32 value) { return __builtin_convertvector(value, Half); }
VF_INLINE i32 from_bytes(u8 value) { return __builtin_convertvector(value, i32); }
#endif
// Codes of values that lie within 0..highest once rounded.
VF_INLINE u8 to_codes(f32 value, f32 highest) { return low_bytes(bits_of(smaller(larger(value, f32{}), highest) + magic)); }

#if VF_LANES == 16
VF_INLINE float sum_of(f32 value) { return _mm512_reduce_add_ps((__m512)value); }
VF_INLINE int32_t sum_of(i32 value) { return _mm512_reduce_add_epi32((__m512i)value); }
VF_INLINE int32_t largest_of(i32 value) { return _mm512_reduce_max_epi32((__m512i)value); }
#else
// Halves that are folded onto each other, down to one lane.
template <typename V, typename Fold> VF_INLINE auto folded(V value, Fold fold) {
    V other = value;
    for (int width = lanes / 2; width > 0; width /= 2) {
        for (int lane = 0; lane < width; lane++) other[lane] = value[lane + width];
        value = fold(value, other);
    }
    return value[0];
}
VF_INLINE float sum_of(f32 value) {
    return folded(value, [](f32 a, f32 b) { return a + b; });
}
VF_INLINE int32_t sum_of(i32 value) {
    return folded(value, [](i32 a, i32 b) { return a + b; });
}
VF_INLINE int32_t largest_of(i32 value) {
    return folded(value, [](i32 a, i32 b) { return larger(a, b); });
}
#endif

// The four bytes at a place, in every lane.
VF_INLINE i32 four(const uint8_t *from) {
    int32_t value;
    std::memcpy(&value, from, 4);
    return all_ints(value);
}

// sum + the products of four unsigned with four signed bytes, by lane. Exact: with bytes of at most 255 and 128 a sum grows by at most
// 130,560 a step, so 16,384 steps of depth hold in 32 bits.
#if defined(VF_DOT_VNNI512)
template <Sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) { return (i32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
VF_INLINE i32 dot_pairs(i32 sum, i32 x, i32 w) { return (i32)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
#elif defined(VF_DOT_VNNI256)
template <Sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) { return (i32)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w); }
VF_INLINE i32 dot_pairs(i32 sum, i32 x, i32 w) { return (i32)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w); }
#elif defined(VF_DOT_AVX2)
// maddubs adds two products in 16 bits and saturates. `direct`: 2 x_max w_max <= 32,767, so it cannot. `split`: even and odd bytes are widened to 16 bits, whose
// products are added in 32.
template <Sums sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) {
    if (sums != Sums::split)
        return (i32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)x, (__m256i)w), _mm256_set1_epi16(1)));
    const __m256i low = _mm256_set1_epi16(255);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256((__m256i)x, low), _mm256_srai_epi16(_mm256_slli_epi16((__m256i)w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16((__m256i)x, 8), _mm256_srai_epi16((__m256i)w, 8));
    return (i32)_mm256_add_epi32((__m256i)sum, _mm256_add_epi32(even, odd));
}
VF_INLINE i16 dot_chunk(i16 sum, i32 x, i32 w) { return (i16)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)x, (__m256i)w)); }
VF_INLINE i32 widen(i16 sum) { return (i32)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
VF_INLINE i32 dot_pairs(i32 sum, i32 x, i32 w) { return (i32)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)x, (__m256i)w)); }
#elif defined(VF_DOT_I8MM)
template <Sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) { return (i32)vusdotq_s32((int32x4_t)sum, (uint8x16_t)x, (int8x16_t)w); }
#elif defined(VF_DOT_SDOT)
// Both operands have a sign: the highest bit of the codes is multiplied apart.
template <Sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) {
    const int8x16_t low = (int8x16_t)vandq_u8((uint8x16_t)x, vdupq_n_u8(127)), high = (int8x16_t)vshrq_n_u8((uint8x16_t)x, 7);
    const int32x4_t top = vdotq_s32(vdupq_n_s32(0), high, (int8x16_t)w);
    return (i32)vaddq_s32(vdotq_s32((int32x4_t)sum, low, (int8x16_t)w), vshlq_n_s32(top, 7));
}
#else
// A product of a byte with a signed byte is at most 255 * 128 = 32,640, which 16 bits hold; only their sums do not.
template <Sums> VF_INLINE i32 dot(i32 sum, i32 x, i32 w) {
    i16 weights = (i16)w, codes = (i16)x;
    i32 even = (i32)(((weights << 8) >> 8) * (codes & 255)), odd = (i32)((weights >> 8) * ((codes >> 8) & 255));
    return sum + ((even << 16) >> 16) + (even >> 16) + ((odd << 16) >> 16) + (odd >> 16);
}
#endif
#if !defined(VF_DOT_VNNI512) && !defined(VF_DOT_VNNI256) && !defined(VF_DOT_AVX2)
VF_INLINE i32 dot_pairs(i32 sum, i32 x, i32 w) { return sum + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16); }
#endif

// table[i] for bytes i of at most 15, and 0 for 16; tables of 16 bytes.
#if VF_LANES == 16
VF_INLINE Bytes look_up(const uint8_t *table, Bytes index) {
    __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    return (Bytes)_mm512_shuffle_epi8(entries, _mm512_add_epi8((__m512i)index, _mm512_set1_epi8(0x70))); // 16 gets the bit that says zero
}
#elif VF_LANES == 8
VF_INLINE Bytes look_up(const uint8_t *table, Bytes index) {
    __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (Bytes)_mm256_shuffle_epi8(entries, _mm256_add_epi8((__m256i)index, _mm256_set1_epi8(0x70)));
}
#else
VF_INLINE Bytes look_up(const uint8_t *table, Bytes index) {
    Bytes found = {};
    for (int i = 0; i < 4 * lanes; i++) found[i] = index[i] < 16 ? table[index[i]] : uint8_t(0);
    return found;
}
#endif

// 2^x for x <= 0, to 2e-7 of it: x = n + f with |f| <= 1/2, and 2^f by a polynomial.
VF_INLINE f32 power_of_two(f32 x) {
    x = larger(x, all(-126.0f));
    f32 shifted = x + magic;
    f32 f = x - (shifted - magic);
    f32 p = all(1.5353362e-4f);
    p = p * f + 1.3398874e-3f;
    p = p * f + 9.6184374e-3f;
    p = p * f + 5.5503324e-2f;
    p = p * f + 2.4022648e-1f;
    p = p * f + 6.9314720e-1f;
    p = p * f + 1.0f;
    return (f32)(bits_of(p) + ((bits_of(shifted) - magic_bits) << 23));
}

// x Phi(x) to 2e-6, with a polynomial of (Phi(x) - 1/2) / x in x^2 on [-5, 5] that was fitted for the smallest largest error.
VF_INLINE f32 gelu(f32 x) {
    f32 c = smaller(larger(x, all(-5.0f)), all(5.0f));
    f32 s = c * c * 0.08f - 1.0f;
    f32 p = all(0.000499246409162879f);
    p = p * s - 0.001522139529697597f;
    p = p * s + 0.001990028191357851f;
    p = p * s - 0.002898886799812317f;
    p = p * s + 0.006172578316181898f;
    p = p * s - 0.010985711589455605f;
    p = p * s + 0.01649634726345539f;
    p = p * s - 0.023332808166742325f;
    p = p * s + 0.031426139175891876f;
    p = p * s - 0.040433432906866074f;
    p = p * s + 0.05152145028114319f;
    p = p * s - 0.07029663771390915f;
    p = p * s + 0.14136378467082977f;
    return x * (c * p + 0.5f);
}

// 1 / (1 + 2^-t): the logistic function with a base of two.
VF_INLINE f32 logistic(f32 t) {
    f32 magnitude = larger(t, -t);
    f32 small = power_of_two(-magnitude);
    f32 half = 1.0f / (1.0f + small);
    return t < f32{} ? small * half : half;
}

template <Activation kind> VF_INLINE f32 activate(f32 x) {
    constexpr float log2e = 1.4426950408889634f;
    if constexpr (kind == Activation::gelu) return gelu(x);
    if constexpr (kind == Activation::gelu_tanh) return x * logistic((x + x * x * x * 0.044715f) * (2 * 0.7978845608028654f * log2e));
    if constexpr (kind == Activation::relu) return larger(x, f32{});
    if constexpr (kind == Activation::quick_gelu) return x * logistic(x * (1.702f * log2e));
    return x;
}

} // namespace vf::VF_NAMESPACE
