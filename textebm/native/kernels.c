/* What torch has no fused form of, over float32 numbers: GELU with its derivative; what an LSTM or a GRU does between two
   matrix products, forward and backward; and what a softmax over a vocabulary does between two.

   gelu(x) = x Phi(x) and gelu'(x) = Phi(x) + x phi(x), with phi and Phi the density and the distribution function of the
   standard normal. Both rest on one exponential, exp(-x^2/2):

   - the exponential: x = n ln 2 + r, then a polynomial in r; relative error below 1e-7. The coefficients are those of the
     Cephes library's expf (Moshier).
   - Phi by Abramowitz and Stegun's 7.1.26, whose error is at most 1.5e-7 in erf, hence 7.5e-8 in Phi: half of what
     float32 resolves near 1.

   The sigmoid rests on the same exponential, and tanh(x) is 2 sigmoid(2x) - 1, as in textebm/model/recurrence.py.

   Compiled by textebm.native with a compiler's plain optimisation; loops are written so that it makes vectors of them. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* One build serves every x86-64: the widest vectors that the processor has are chosen when the library is loaded. */
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

/* Read with -fopenmp-simd, which needs no library: what a loop reads and writes does not overlap, sums have no order. */
#define NO_OVERLAP _Pragma("omp simd")
#define SUM_OF(name) _Pragma(TEXT(omp simd reduction(+ : name)))
#define GREATEST_OF(name) _Pragma(TEXT(omp simd reduction(max : name)))
#define TEXT(...) #__VA_ARGS__

#define INLINE static inline __attribute__((always_inline))

/* Choices are made by masks over bits: with branches, compilers make no vectors of the loops unless they may assume that
   all is a number (-ffinite-math-only), and then what is none gets lost. */
INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint32_t chosen(uint32_t whether, uint32_t yes, uint32_t no)
{
    uint32_t mask = -whether;
    return (mask & yes) | (~mask & no);
}

/* The first where x is negative, else the second. */
INLINE float by_sign(float x, float negative, float positive)
{
    return of_bits(chosen(bits_of(x) >> 31, bits_of(negative), bits_of(positive)));
}

#define MINUS_87 0xc2ae0000u
#define MINUS_INFINITY 0xff800000u

/* exp(y) for y <= 0; below -87 as at -87, where float32 ends. */
INLINE float exponential(float y)
{
    uint32_t bits = bits_of(y);
    y = of_bits(chosen(bits - MINUS_87 <= MINUS_INFINITY - MINUS_87, MINUS_87, bits));
    int power = (int)(y * 1.44269504f - 0.5f);
    float n = (float)power;
    float r = y - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * of_bits((uint32_t)(power + 127) << 23);
}

INLINE void normal(float x, float *density, float *distribution)
{
    float bell = exponential(-0.5f * x * x);
    float t = 1.0f / (1.0f + 0.231641888f * __builtin_fabsf(x)); /* 0.3275911 / sqrt 2 */
    float q = 1.061405429f;
    q = q * t - 1.453152027f;
    q = q * t + 1.421413741f;
    q = q * t - 0.284496736f;
    q = q * t + 0.254829592f;
    float tail = 0.5f * q * t * bell;
    *density = 0.398942280f * bell;
    *distribution = by_sign(x, tail, 1.0f - tail);
}

/* value = gelu(x), and gelu'(x) in the place of x, of n numbers; the two do not overlap. */
EVERY_PROCESSOR void textebm_gelu(float *restrict x, float *restrict value, long long n)
{
    for (long long i = 0; i < n; i++) {
        float density, distribution, argument = x[i];
        normal(argument, &density, &distribution);
        value[i] = argument * distribution;
        x[i] = distribution + argument * density;
    }
}

/* above * gelu'(x) in the place of x, of n numbers; the two do not overlap. */
EVERY_PROCESSOR void textebm_gelu_backward(float *restrict x, const float *restrict above, long long n)
{
    for (long long i = 0; i < n; i++) {
        float density, distribution, argument = x[i];
        normal(argument, &density, &distribution);
        x[i] = above[i] * (distribution + argument * density);
    }
}

INLINE float sigmoid(float x)
{
    float small = exponential(-__builtin_fabsf(x));
    float s = 1.0f / (1.0f + small);
    return s * by_sign(x, small, 1.0f);
}

INLINE float tangent(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

/* One number: bfloat16 where `narrow`, else float32. */
INLINE float at_place(const void *product, long long place, int narrow)
{
    if (!narrow)
        return ((const float *)product)[place];
    return of_bits((uint32_t)((const uint16_t *)product)[place] << 16);
}

/* To bfloat16, to the nearest, ties to even. */
INLINE uint16_t rounded(float value)
{
    uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Stored as bfloat16 where `narrow`, else as float32. */
INLINE void put(void *row, long long k, float value, int narrow)
{
    if (narrow)
        ((uint16_t *)row)[k] = rounded(value);
    else
        ((float *)row)[k] = value;
}

/* One time step of a recurrence over packed sentences (textebm/model/recurrence.py has layout and equations).

   The step's rows are start, start + 1, ..., start + size - 1 of every packed matrix; `before` is the first row of the
   step before it, or -1 where sentences begin, whose states are in matrices of their own. `product` is what a matrix
   product has just brought, in rows 0 to size - 1, and `narrow_...` takes what goes into the next one: both bfloat16, as
   inputs and activations are; or narrow_... is NULL and all of it float32. Backward, `following` sentences go on after
   this step, and the gradients in the gates are written from row `into` on. Matrices of sentences begin with the first
   that is worked on, packed ones with the batch. */

/* What a gate is of: the word's share, the sentence's, and the state's. */
INLINE float sum_at(const void *inputs, long long word, const float *own, long long unit, const void *product,
                    long long place, int narrow)
{
    return at_place(inputs, word, narrow) + own[unit] + at_place(product, place, narrow);
}

INLINE void lstm_forward(int narrow, long long start, long long size, long long width, long long before,
                         const void *inputs, const float *per_sentence, const void *product, const float *first_cells,
                         void *activations, float *cells, float *tanh_cells, float *states, uint16_t *narrow_states)
{
    for (long long j = 0; j < size; j++) {
        long long word = (start + j) * 4 * width, at = j * 4 * width;
        const float *earlier = before < 0 ? first_cells + j * width : cells + (before + j) * width;
        const float *own = per_sentence + at;
        float *restrict cell = cells + (start + j) * width;
        float *restrict tanh_cell = tanh_cells + (start + j) * width, *restrict state = states + (start + j) * width;
        uint16_t *restrict rounded_state = narrow ? narrow_states + (start + j) * width : 0;
        NO_OVERLAP
        for (long long k = 0; k < width; k++) {
            float i = sigmoid(sum_at(inputs, word + k, own, k, product, at + k, narrow));
            float f = sigmoid(sum_at(inputs, word + width + k, own, width + k, product, at + width + k, narrow));
            float g = tangent(
                sum_at(inputs, word + 2 * width + k, own, 2 * width + k, product, at + 2 * width + k, narrow));
            float o = sigmoid(
                sum_at(inputs, word + 3 * width + k, own, 3 * width + k, product, at + 3 * width + k, narrow));
            float c = f * earlier[k] + i * g;
            float t = tangent(c);
            put(activations, word + k, i, narrow);
            put(activations, word + width + k, f, narrow);
            put(activations, word + 2 * width + k, g, narrow);
            put(activations, word + 3 * width + k, o, narrow);
            cell[k] = c;
            tanh_cell[k] = t;
            state[k] = o * t;
            if (narrow)
                rounded_state[k] = rounded(o * t);
        }
    }
}

/* The gradient in the cells is carried in `into_cells`, and `total` sums those in the gates over a sentence's words. */
INLINE void lstm_backward(int narrow, long long start, long long size, long long width, long long before,
                          long long following, long long into, const float *slope, const void *product,
                          const float *first_cells, const void *activations, const float *cells,
                          const float *tanh_cells, float *into_cells, float *total, float *slopes,
                          uint16_t *narrow_slopes)
{
    for (long long j = 0; j < size; j++) {
        const float *above = slope + (start + j) * width;
        long long word = (start + j) * 4 * width;
        const float *earlier = before < 0 ? first_cells + j * width : cells + (before + j) * width;
        const float *tanh_cell = tanh_cells + (start + j) * width;
        float *restrict into_cell = into_cells + j * width, *restrict sum = total + j * 4 * width;
        float *restrict gates = slopes + (into + j) * 4 * width;
        uint16_t *restrict rounded_gates = narrow ? narrow_slopes + j * 4 * width : 0;
        int last = j >= following;
        NO_OVERLAP
        for (long long k = 0; k < width; k++) {
            float i = at_place(activations, word + k, narrow), f = at_place(activations, word + width + k, narrow);
            float g = at_place(activations, word + 2 * width + k, narrow);
            float o = at_place(activations, word + 3 * width + k, narrow);
            float t = tanh_cell[k];
            float hidden = above[k] + (last ? 0.0f : at_place(product, j * width + k, narrow));
            float in_cell = into_cell[k] + hidden * o * (1.0f - t * t);
            float of_i = in_cell * g * i * (1.0f - i), of_f = in_cell * earlier[k] * f * (1.0f - f);
            float of_g = in_cell * i * (1.0f - g * g), of_o = hidden * t * o * (1.0f - o);
            into_cell[k] = in_cell * f;
            gates[k] = of_i;
            gates[width + k] = of_f;
            gates[2 * width + k] = of_g;
            gates[3 * width + k] = of_o;
            sum[k] += of_i;
            sum[width + k] += of_f;
            sum[2 * width + k] += of_g;
            sum[3 * width + k] += of_o;
            if (narrow) {
                rounded_gates[k] = rounded(of_i);
                rounded_gates[width + k] = rounded(of_f);
                rounded_gates[2 * width + k] = rounded(of_g);
                rounded_gates[3 * width + k] = rounded(of_o);
            }
        }
    }
}

/* `candidates` keeps the recurrent product of n with its bias, before the reset gate. */
INLINE void gru_forward(int narrow, long long start, long long size, long long width, long long before,
                        const void *inputs, const float *per_sentence, const void *product, const float *first_states,
                        const float *bias, void *activations, float *candidates, float *states,
                        uint16_t *narrow_states)
{
    for (long long j = 0; j < size; j++) {
        long long word = (start + j) * 3 * width, at = j * 3 * width;
        const float *own = per_sentence + at;
        const float *earlier = before < 0 ? first_states + j * width : states + (before + j) * width;
        float *restrict state = states + (start + j) * width;
        float *restrict candidate = candidates + (start + j) * width;
        uint16_t *restrict rounded_state = narrow ? narrow_states + (start + j) * width : 0;
        NO_OVERLAP
        for (long long k = 0; k < width; k++) {
            float r = sigmoid(sum_at(inputs, word + k, own, k, product, at + k, narrow) + bias[k]);
            float u = sigmoid(sum_at(inputs, word + width + k, own, width + k, product, at + width + k, narrow) +
                              bias[width + k]);
            float p = at_place(product, at + 2 * width + k, narrow) + bias[2 * width + k];
            float n = tangent(at_place(inputs, word + 2 * width + k, narrow) + own[2 * width + k] + r * p);
            float h = n + u * (earlier[k] - n);
            put(activations, word + k, r, narrow);
            put(activations, word + width + k, u, narrow);
            put(activations, word + 2 * width + k, n, narrow);
            candidate[k] = p;
            state[k] = h;
            if (narrow)
                rounded_state[k] = rounded(h);
        }
    }
}

/* `carried` takes and brings the part of the gradient in the states that does not pass through the product; slopes and
   total have four parts: r, u, the recurrent product of n, and n itself. */
INLINE void gru_backward(int narrow, long long start, long long size, long long width, long long before,
                         long long following, long long into, const float *slope, const void *product,
                         const float *first_states, const void *activations, const float *candidates,
                         const float *states, float *carried, float *total, float *slopes, uint16_t *narrow_slopes)
{
    for (long long j = 0; j < size; j++) {
        const float *above = slope + (start + j) * width;
        long long word = (start + j) * 3 * width;
        const float *earlier = before < 0 ? first_states + j * width : states + (before + j) * width;
        const float *candidate = candidates + (start + j) * width;
        float *restrict carry = carried + j * width, *restrict sum = total + j * 4 * width;
        float *restrict gates = slopes + (into + j) * 4 * width;
        uint16_t *restrict rounded_gates = narrow ? narrow_slopes + j * 3 * width : 0;
        int last = j >= following;
        NO_OVERLAP
        for (long long k = 0; k < width; k++) {
            float r = at_place(activations, word + k, narrow), u = at_place(activations, word + width + k, narrow);
            float n = at_place(activations, word + 2 * width + k, narrow);
            float hidden = above[k] + (last ? 0.0f : carry[k] + at_place(product, j * width + k, narrow));
            float of_n = hidden * (1.0f - u) * (1.0f - n * n), of_p = of_n * r;
            float of_r = of_p * (1.0f - r) * candidate[k], of_u = hidden * (earlier[k] - n) * u * (1.0f - u);
            carry[k] = hidden * u;
            gates[k] = of_r;
            gates[width + k] = of_u;
            gates[2 * width + k] = of_p;
            gates[3 * width + k] = of_n;
            sum[k] += of_r;
            sum[width + k] += of_u;
            sum[2 * width + k] += of_p;
            sum[3 * width + k] += of_n;
            if (narrow) {
                rounded_gates[k] = rounded(of_r);
                rounded_gates[width + k] = rounded(of_u);
                rounded_gates[2 * width + k] = rounded(of_p);
            }
        }
    }
}

/* The branch stands outside the loops, so that each knows what its products are. */
#define EITHER_WAY(step, narrow, ...) \
    do { \
        if (narrow) \
            step(1, __VA_ARGS__); \
        else \
            step(0, __VA_ARGS__); \
    } while (0)

EVERY_PROCESSOR void textebm_lstm_forward(long long start, long long size, long long width, long long before,
                                          const void *inputs, const float *per_sentence, const void *product,
                                          const float *first_cells, void *activations, float *cells,
                                          float *tanh_cells, float *states, uint16_t *narrow_states)
{
    EITHER_WAY(lstm_forward, narrow_states, start, size, width, before, inputs, per_sentence, product, first_cells,
               activations, cells, tanh_cells, states, narrow_states);
}

EVERY_PROCESSOR void textebm_lstm_backward(long long start, long long size, long long width, long long before,
                                           long long following, long long into, const float *slope,
                                           const void *product, const float *first_cells, const void *activations,
                                           const float *cells, const float *tanh_cells, float *into_cells,
                                           float *total, float *slopes, uint16_t *narrow_slopes)
{
    EITHER_WAY(lstm_backward, narrow_slopes, start, size, width, before, following, into, slope, product, first_cells,
               activations, cells, tanh_cells, into_cells, total, slopes, narrow_slopes);
}

EVERY_PROCESSOR void textebm_gru_forward(long long start, long long size, long long width, long long before,
                                         const void *inputs, const float *per_sentence, const void *product,
                                         const float *first_states, const float *bias, void *activations,
                                         float *candidates, float *states, uint16_t *narrow_states)
{
    EITHER_WAY(gru_forward, narrow_states, start, size, width, before, inputs, per_sentence, product, first_states,
               bias, activations, candidates, states, narrow_states);
}

EVERY_PROCESSOR void textebm_gru_backward(long long start, long long size, long long width, long long before,
                                          long long following, long long into, const float *slope,
                                          const void *product, const float *first_states, const void *activations,
                                          const float *candidates, const float *states, float *carried, float *total,
                                          float *slopes, uint16_t *narrow_slopes)
{
    EITHER_WAY(gru_backward, narrow_slopes, start, size, width, before, following, into, slope, product, first_states,
               activations, candidates, states, carried, total, slopes, narrow_slopes);
}

/* Order of floats as that of integers, and back; what is no number and positive is above all. */
INLINE uint32_t ordered(uint32_t bits) { return bits ^ (-(bits >> 31) & 0x7fffffffu); }

/* Of each row of logits: the target's, the greatest, and the sum of exp(logit - greatest). */
INLINE void normaliser(int narrow, long long rows, long long classes, const void *logits, const long long *targets,
                       float *of_target, float *greatest, float *sums)
{
    for (long long r = 0; r < rows; r++) {
        const void *row = (const char *)logits + r * classes * (narrow ? 2 : 4);
        int32_t top = INT32_MIN;
        GREATEST_OF(top)
        for (long long k = 0; k < classes; k++) {
            int32_t here = (int32_t)ordered(bits_of(at_place(row, k, narrow)));
            top = here > top ? here : top;
        }
        float most = of_bits(ordered((uint32_t)top)), sum = 0.0f;
        SUM_OF(sum)
        for (long long k = 0; k < classes; k++)
            sum += exponential(at_place(row, k, narrow) - most);
        of_target[r] = at_place(row, targets[r], narrow);
        greatest[r] = most;
        sums[r] = sum;
    }
}

/* Of each row of logits of the classes from `first`: the probability, less 1 at the target, in its place; -slope times
   that is added to the gradient in the bias. */
INLINE void excess(int narrow, long long rows, long long classes, long long first, void *logits,
                   const long long *targets, const float *normalisers, const float *slopes, float *of_bias)
{
    for (long long r = 0; r < rows; r++) {
        void *row = (char *)logits + r * classes * (narrow ? 2 : 4);
        long long target = targets[r] - first;
        int inside = target >= 0 && target < classes;
        float normaliser = normalisers[r], slope = slopes[r];
        float right = inside ? exponential(at_place(row, target, narrow) - normaliser) : 0.0f;
        NO_OVERLAP
        for (long long k = 0; k < classes; k++) {
            float probability = exponential(at_place(row, k, narrow) - normaliser);
            of_bias[k] -= slope * probability;
            put(row, k, probability, narrow);
        }
        if (inside) {
            of_bias[target] += slope;
            put(row, target, right - 1.0f, narrow);
        }
    }
}

EVERY_PROCESSOR void textebm_normaliser(long long narrow, long long rows, long long classes, const void *logits,
                                        const long long *targets, float *of_target, float *greatest, float *sums)
{
    EITHER_WAY(normaliser, narrow, rows, classes, logits, targets, of_target, greatest, sums);
}

EVERY_PROCESSOR void textebm_excess(long long narrow, long long rows, long long classes, long long first, void *logits,
                                    const long long *targets, const float *normalisers, const float *slopes,
                                    float *of_bias)
{
    EITHER_WAY(excess, narrow, rows, classes, first, logits, targets, normalisers, slopes, of_bias);
}
