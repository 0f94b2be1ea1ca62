/* GELU and its derivative in one pass over float32 numbers.

   gelu(x) = x Phi(x) and gelu'(x) = Phi(x) + x phi(x), with phi and Phi the density and the distribution function of the
   standard normal. Both rest on one exponential, exp(-x^2/2):

   - the exponential: x = n ln 2 + r, then a polynomial in r; relative error below 1e-7. The coefficients are those of the
     Cephes library's expf (Moshier).
   - Phi by Abramowitz and Stegun's 7.1.26, whose error is at most 1.5e-7 in erf, hence 7.5e-8 in Phi: half of what
     float32 resolves near 1.

   Compiled by textebm.native with a compiler's plain optimisation; loops are written so that it makes vectors of them. */

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
/* One build serves every x86-64: the widest vectors that the processor has are chosen when the library is loaded. */
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

/* exp(y) for y <= 0; below -87 as at -87, where float32 ends. */
static inline __attribute__((always_inline)) float exponential(float y)
{
    y = y < -87.0f ? -87.0f : y;
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
    int bits = (power + 127) << 23;
    float two_to_n;
    memcpy(&two_to_n, &bits, sizeof bits);
    return p * two_to_n;
}

static inline __attribute__((always_inline)) void normal(float x, float *density, float *distribution)
{
    float bell = exponential(-0.5f * x * x);
    float away = x < 0.0f ? -x : x;
    float t = 1.0f / (1.0f + 0.231641888f * away); /* 0.3275911 / sqrt 2 */
    float q = 1.061405429f;
    q = q * t - 1.453152027f;
    q = q * t + 1.421413741f;
    q = q * t - 0.284496736f;
    q = q * t + 0.254829592f;
    float tail = 0.5f * q * t * bell;
    *density = 0.398942280f * bell;
    *distribution = x < 0.0f ? tail : 1.0f - tail;
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
