// Functions of vectors: powers of two, GELU and other activations, GELU as codes.

namespace vf::VF_NAMESPACE {

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
    auto term = [&](int degree, int n)
                    __attribute__((always_inline)) { return (f32)_mm512_permutexvar_ps((__m512i)piece[n], _mm512_load_ps(gelu_terms[degree])); };
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
