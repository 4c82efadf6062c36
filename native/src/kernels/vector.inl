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

#define VF_MEMBER inline __attribute__((always_inline))
#define VF_INLINE static VF_MEMBER

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
// The lowest byte of every lane, and bytes as integers. Compilers take vectors apart for what they could convert.
#if VF_LANES == 16
VF_INLINE u8 low_bytes(i32 value) { return (u8)_mm512_cvtepi32_epi8((__m512i)value); }
VF_INLINE i32 from_bytes(u8 value) { return (i32)_mm512_cvtepu8_epi32((__m128i)value); }
#elif VF_LANES == 8
VF_INLINE u8 low_bytes(i32 value) {
    const __m256i lowest =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i bytes = _mm256_shuffle_epi8((__m256i)value, lowest);
    __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    return (u8)_mm_cvtsi128_si64(both);
}
VF_INLINE i32 from_bytes(u8 value) { return (i32)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)value)); }
#else
VF_INLINE u8 low_bytes(i32 value) { return __builtin_convertvector(value, u8); }
VF_INLINE i32 from_bytes(u8 value) { return __builtin_convertvector(value, i32); }
#endif
// x / scale, rounded as a division rounds it, with `inverse` the nearest number to 1 / scale: what is left of x is taken twice (Markstein 1990).
#if VF_LANES == 16 || VF_LANES == 8
VF_INLINE f32 quotient(f32 x, f32 scale, f32 inverse) {
    const f32 first = x * inverse;
    f32 found = first;
    for (int turn = 0; turn < 2; turn++) {
#if VF_LANES == 16
        const __m512 rest = _mm512_fnmadd_ps((__m512)found, (__m512)scale, (__m512)x);
        found = (f32)_mm512_fmadd_ps(rest, (__m512)inverse, (__m512)found);
#else
        const __m256 rest = _mm256_fnmadd_ps((__m256)found, (__m256)scale, (__m256)x);
        found = (f32)_mm256_fmadd_ps(rest, (__m256)inverse, (__m256)found);
#endif
    }
    return found == found ? found : first; // infinite ones leave nothing that is a number
}
#else
VF_INLINE f32 quotient(f32 x, f32 scale, f32) { return x / scale; }
#endif
// Codes of values that lie within 0..highest once rounded; 0 for what is no number.
#if VF_LANES == 16
VF_INLINE u8 to_codes(f32 value, f32 highest) {
    return low_bytes(larger((i32)_mm512_cvtps_epi32((__m512)smaller(highest, value)), i32{})); // no number becomes the smallest integer
}
#else
VF_INLINE u8 to_codes(f32 value, f32 highest) { return low_bytes(bits_of(smaller(larger(value, f32{}), highest) + magic)); }
#endif

#if VF_LANES == 16
// Codes of four vectors, one behind the other; as to_codes.
VF_INLINE Bytes four_codes(const f32 (&y)[4], f32 highest) {
    __m512i rounded[4];
    for (int n = 0; n < 4; n++) rounded[n] = _mm512_cvtps_epi32((__m512)smaller(highest, y[n]));
    const __m512i by_lane = _mm512_packus_epi16(_mm512_packs_epi32(rounded[0], rounded[1]), _mm512_packs_epi32(rounded[2], rounded[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return (Bytes)_mm512_permutexvar_epi32(order, by_lane);
}
// One of two equal parts of a vector.
template <int part, int parts> VF_INLINE __m256i part_of(Bytes value) {
    static_assert(parts == 2);
    return _mm512_extracti64x4_epi64((__m512i)value, part);
}
#endif

#if VF_LANES == 16
VF_INLINE float sum_of(f32 value) { return _mm512_reduce_add_ps((__m512)value); }
VF_INLINE int32_t sum_of(i32 value) { return _mm512_reduce_add_epi32((__m512i)value); }
VF_INLINE int32_t largest_of(i32 value) { return _mm512_reduce_max_epi32((__m512i)value); }
VF_INLINE float largest_of(f32 value) { return _mm512_reduce_max_ps((__m512)value); }
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
VF_INLINE float largest_of(f32 value) {
    return folded(value, [](f32 a, f32 b) { return larger(a, b); });
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

// Rows become columns.
VF_INLINE void transpose(i32 (&rows)[lanes]) {
#if VF_LANES == 16
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
            a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xDD);
        }
    for (int j = 0; j < 8; j++) {
        rows[j] = (i32)_mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
        rows[j + 8] = (i32)_mm512_shuffle_i32x4(a[j], a[j + 8], 0xDD);
    }
#else
    int32_t taken[lanes][lanes];
    for (int i = 0; i < lanes; i++) save(taken[i], rows[i]);
    for (int i = 0; i < lanes; i++)
        for (int j = 0; j < lanes; j++) rows[i][j] = taken[j][i];
#endif
}

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

// Calls f(0) .. f(N - 1) with constants, so that arrays of vectors become registers.
template <typename F, int... index> VF_INLINE void unrolled(F f, std::integer_sequence<int, index...>) {
    (f(std::integral_constant<int, index>{}), ...);
}
template <int N, typename F> VF_INLINE void each(F f) { unrolled(f, std::make_integer_sequence<int, N>{}); }
#define VF_EACH(name) [&](auto name) __attribute__((always_inline))

} // namespace vf::VF_NAMESPACE
