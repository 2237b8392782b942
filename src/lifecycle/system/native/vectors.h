/* Vectors of floats and of bf16, as GCC's vector types, which any machine can compile: what all of our C shares. */

#include <math.h>

/* Instructions that multiply two bf16 at a time; processors without widen by a shift, and add in the same order. */
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define UNITS 1
#else
#define UNITS 0
#endif

#ifdef __AVX512F__ /* 32 registers of 16 floats, else 16 of 8 */
#define WIDTH 16
#else
#define WIDTH 8
#endif

enum { HIGH = (int)0xFFFF0000 };

#define VECTOR(type, bytes, least) typedef type __attribute__((vector_size(bytes), aligned(least), may_alias))
VECTOR(float, WIDTH * 4, 4) wide;
VECTOR(int, WIDTH * 4, 4) wide_ints;
typedef int word __attribute__((may_alias, aligned(2)));
typedef unsigned short bf16;

#define INLINE static inline __attribute__((always_inline))

/* The upper half of each number becomes the nearest bf16, ties to even. */
#define NEAREST(name, vec, ints)               \
  INLINE ints name(vec x) {                    \
    ints bits = (ints)x;                       \
    return bits + 0x7FFF + ((bits >> 16) & 1); \
  }

/* Cody and Waite's reduction and a polynomial. name_near(x, whole) is exp(x - whole ln 2) for the `whole` nearest to
   x / ln 2; name(x) is exp(x): 0 below -87, inf above 88.7. Adding 1.5 * 2^23 rounds to a whole number; both comparisons
   are false for NaN, so that NaN stays NaN. */
#define EXPONENTIAL(name, vec, ints)                                 \
  INLINE vec name##_near(vec x, vec whole) {                         \
    vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;    \
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;                 \
    y = y * r + 8.3334519073e-3f;                                    \
    y = y * r + 4.1665795894e-2f;                                    \
    y = y * r + 1.6666665459e-1f;                                    \
    y = y * r + 5.0000001201e-1f;                                    \
    return y * r * r + r + 1.0f;                                     \
  }                                                                  \
  INLINE vec name(vec x) {                                           \
    const float shift = 12582912.0f;                                 \
    vec whole = (x * 1.44269504f + shift) - shift;                   \
    vec y = name##_near(x, whole);                                   \
    ints power = (__builtin_convertvector(whole, ints) + 127) << 23; \
    ints small = x <= -87.0f, large = x >= 88.0f;                    \
    ints bits = (ints)(y * (vec)power) & ~small;                     \
    return (vec)((bits & ~large) | (large & 0x7F800000));            \
  }
