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

// Functions of N vectors at once take every step for all of them before the next. A processor looks ahead by some hundred instructions, and a
// polynomial is a chain of steps that wait for each other: one vector after the other, it would find too little to do meanwhile.
constexpr int together = lanes == 16 ? 6 : lanes == 8 ? 3 : 1;

// p = p x + c, for polynomials.
template <int N> VF_INLINE void next_term(f32 (&p)[N], const f32 (&x)[N], float c) {
    each<N>(VF_EACH(n) { p[n] = p[n] * x[n] + c; });
}

#if VF_LANES == 16
// 2^x for x <= 0, to 6e-7 of it: x = n + k / 16 + f with |f| <= 1/32, 2^(k / 16) from a register, and 2^f by a polynomial.
constexpr float sixteenths = 786432.0f; // 1.5 * 2^19: adding it leaves the nearest sixteenth in the lowest bits
alignas(64) constexpr float roots_of_two[16] = {1.0f,        1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
                                                1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                                                1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
template <int N> VF_INLINE void powers_of_two(f32 (&x)[N]) {
    f32 shifted[N], whole[N], p[N];
    each<N>(VF_EACH(n) { x[n] = larger(x[n], all(-126.0f)); });
    each<N>(VF_EACH(n) { shifted[n] = x[n] + sixteenths; });
    each<N>(VF_EACH(n) { whole[n] = shifted[n] - sixteenths; });
    each<N>(VF_EACH(n) { x[n] = x[n] - whole[n]; });
    each<N>(VF_EACH(n) { p[n] = x[n] * 0.240235349f + 0.693187816f; });
    next_term(p, x, 1.0f);
    each<N>(VF_EACH(n) { p[n] *= (f32)_mm512_permutexvar_ps((__m512i)shifted[n], _mm512_load_ps(roots_of_two)); });
    each<N>(VF_EACH(n) { x[n] = (f32)_mm512_scalef_ps((__m512)p[n], (__m512)whole[n]); }); // times 2^floor(whole)
}
#else
// 2^x for x <= 0, to 2e-7 of it: x = n + f with |f| <= 1/2, and 2^f by a polynomial.
template <int N> VF_INLINE void powers_of_two(f32 (&x)[N]) {
    f32 shifted[N], p[N];
    each<N>(VF_EACH(n) { x[n] = larger(x[n], all(-126.0f)); });
    each<N>(VF_EACH(n) { shifted[n] = x[n] + magic; });
    each<N>(VF_EACH(n) { x[n] = x[n] - (shifted[n] - magic); });
    each<N>(VF_EACH(n) { p[n] = x[n] * 1.5353362e-4f + 1.3398874e-3f; });
    next_term(p, x, 9.6184374e-3f);
    next_term(p, x, 5.5503324e-2f);
    next_term(p, x, 2.4022648e-1f);
    next_term(p, x, 6.9314720e-1f);
    next_term(p, x, 1.0f);
    each<N>(VF_EACH(n) { x[n] = (f32)(bits_of(p[n]) + ((bits_of(shifted[n]) - magic_bits) << 23)); });
}
#endif
VF_INLINE f32 power_of_two(f32 x) {
    f32 one[1] = {x};
    powers_of_two(one);
    return one[0];
}

#if VF_LANES == 16
// x Phi(x) = x / 2 + g(|x|) to 1e-6, with g in pieces of 1 / 2.85, each a polynomial of degree 4 around its middle; the last is |x| / 2. The coefficients of
// 16 pieces lie in one register for each degree, so that most of the work is left to what multipliers do not do.
constexpr float gelu_pieces = 2.85f;
alignas(64) constexpr float gelu_terms[5][16] = {
    {0.0f, 0.0481262431f, 0.181462333f, 0.37236321f, 0.58914721f, 0.807575107f, 1.01550698f, 1.21082342f, 1.39649093f, 1.57643819f, 1.75359619f,
     1.92960548f, 2.10520959f, 2.28069019f, 2.45613813f, 2.63157892f},
    {0.0f, 0.0943077877f, 0.167520434f, 0.20879072f, 0.220659673f, 0.214219332f, 0.201384649f, 0.189815581f, 0.182205677f, 0.178179741f, 0.176401407f,
     0.175733238f, 0.17551741f, 0.17545706f, 0.175442398f, 0.175438598f},
    {0.0491150506f, 0.043339923f, 0.0289417841f, 0.0125879077f, 0.000277111103f, -0.00568056433f, -0.00651267543f, -0.00485095195f, -0.00280905259f,
     -0.00133760972f, -0.000537159212f, -0.000184425517f, -5.45873954e-05f, -1.40051689e-05f, -3.1264974e-06f, 0.0f},
    {0.0f, -0.00364369666f, -0.00548811955f, -0.00500096893f, -0.0030558994f, -0.00101040537f, 0.000270874938f, 0.000694415357f, 0.000606477959f,
     0.000370995986f, 0.000179084731f, 7.12931724e-05f, 2.39212332e-05f, 6.85027999e-06f, 1.68767156e-06f, 0.0f},
    {-0.00100086315f, -0.000741998898f, -0.000157815957f, 0.000360852573f, 0.000551534409f, 0.000434843911f, 0.000203710908f, 2.42673214e-05f,
     -5.25107935e-05f, -5.75684498e-05f, -3.71343085e-05f, -1.79775907e-05f, -7.00761348e-06f, -2.26913062e-06f, -6.20875369e-07f, 0.0f},
};

// The same for t = 2.85 x, as inverse gelu(x) + zero: with a polynomial for each of 31 pieces, that of piece n at n & 31.
VF_INLINE void make_coded_gelu(float (&terms)[5][32], float inverse, float zero) {
    for (int n = -15; n <= 15; n++) {
        const int from = n < 0 ? -n : n, to = n & 31;
        for (int degree = 0; degree < 5; degree++) {
            const float term = gelu_terms[degree][from], line = degree == 0 ? float(n) : degree == 1 ? 1.0f : 0.0f;
            const float own = (n < 0 && degree % 2 ? -term : term) + line * (0.5f / gelu_pieces);
            terms[degree][to] = own * inverse + (degree == 0 ? zero : 0.0f);
        }
    }
    for (auto &degree : terms) degree[16] = 0;
}
template <int N> VF_INLINE void coded_gelu(f32 (&t)[N], const float (&terms)[5][32]) {
    f32 p[N];
    i32 piece[N];
    each<N>(VF_EACH(n) { piece[n] = larger(smaller(bits_of(t[n] + magic), all_ints(magic_bits + 15)), all_ints(magic_bits - 15)); });
    each<N>(VF_EACH(n) { t[n] = t[n] - ((f32)piece[n] - magic); });
    auto term = [&](int degree, int n) __attribute__((always_inline)) {
        return (f32)_mm512_permutex2var_ps(_mm512_load_ps(terms[degree]), (__m512i)piece[n], _mm512_load_ps(terms[degree] + 16));
    };
    each<N>(VF_EACH(n) { p[n] = term(4, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(3, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(2, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(1, n); });
    each<N>(VF_EACH(n) { t[n] = p[n] * t[n] + term(0, n); });
}

template <int N> VF_INLINE void gelu(f32 (&x)[N]) {
    f32 t[N], p[N];
    i32 piece[N];
    each<N>(VF_EACH(n) { t[n] = (f32)(bits_of(x[n]) & 0x7FFFFFFF) * gelu_pieces; });
    each<N>(VF_EACH(n) { piece[n] = smaller(bits_of(t[n] + magic), all_ints(magic_bits + 15)); });
    each<N>(VF_EACH(n) { t[n] = t[n] - ((f32)piece[n] - magic); });
    auto term = [&](int degree, int n) __attribute__((always_inline)) {
        return (f32)_mm512_permutexvar_ps((__m512i)piece[n], _mm512_load_ps(gelu_terms[degree]));
    };
    each<N>(VF_EACH(n) { p[n] = term(4, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(3, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(2, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(1, n); });
    each<N>(VF_EACH(n) { p[n] = p[n] * t[n] + term(0, n); });
    each<N>(VF_EACH(n) { x[n] = x[n] * 0.5f + p[n]; });
}
#else
// x Phi(x) to 2e-6, with a polynomial of (Phi(x) - 1/2) / x in x^2 on [-5, 5] that was fitted for the smallest largest error.
template <int N> VF_INLINE void gelu(f32 (&x)[N]) {
    f32 c[N], s[N], p[N];
    each<N>(VF_EACH(n) { c[n] = smaller(larger(x[n], all(-5.0f)), all(5.0f)); });
    each<N>(VF_EACH(n) { s[n] = c[n] * c[n] * 0.08f - 1.0f; });
    each<N>(VF_EACH(n) { p[n] = s[n] * 0.000499246409162879f - 0.001522139529697597f; });
    next_term(p, s, 0.001990028191357851f);
    next_term(p, s, -0.002898886799812317f);
    next_term(p, s, 0.006172578316181898f);
    next_term(p, s, -0.010985711589455605f);
    next_term(p, s, 0.01649634726345539f);
    next_term(p, s, -0.023332808166742325f);
    next_term(p, s, 0.031426139175891876f);
    next_term(p, s, -0.040433432906866074f);
    next_term(p, s, 0.05152145028114319f);
    next_term(p, s, -0.07029663771390915f);
    next_term(p, s, 0.14136378467082977f);
    each<N>(VF_EACH(n) { x[n] = x[n] * (c[n] * p[n] + 0.5f); });
}
#endif

// 1 / (1 + 2^-t): the logistic function with a base of two.
template <int N> VF_INLINE void logistic(f32 (&t)[N]) {
    f32 small[N];
    each<N>(VF_EACH(n) { small[n] = -larger(t[n], -t[n]); });
    powers_of_two(small);
    each<N>(VF_EACH(n) {
        const f32 half = 1.0f / (1.0f + small[n]);
        t[n] = t[n] < f32{} ? small[n] * half : half;
    });
}

template <Activation kind, int N> VF_INLINE void activate(f32 (&x)[N]) {
    constexpr float log2e = 1.4426950408889634f;
    if constexpr (kind == Activation::gelu) gelu(x);
    if constexpr (kind == Activation::relu) each<N>(VF_EACH(n) { x[n] = larger(x[n], f32{}); });
    if constexpr (kind == Activation::gelu_tanh || kind == Activation::quick_gelu) {
        f32 t[N];
        each<N>(VF_EACH(n) {
            if constexpr (kind == Activation::quick_gelu) t[n] = x[n] * (1.702f * log2e);
            else t[n] = (x[n] + x[n] * x[n] * x[n] * 0.044715f) * (2 * 0.7978845608028654f * log2e);
        });
        logistic(t);
        each<N>(VF_EACH(n) { x[n] = x[n] * t[n]; });
    }
}

} // namespace vf::VF_NAMESPACE
