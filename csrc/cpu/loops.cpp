// Compiled once for each instruction set (COMPDX_ISA_NAMESPACE says which). The arithmetic is core's; here are loops over arrays that
// compilers turn into SIMD, and the places where they need help: Philox, tables, and exponentials in integers.
//
// No standard containers or algorithms: their inline functions would be shared between the copies of this file.
#include "cpu/loops.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own AVX-512 headers trip these warnings (their "undefined" vectors are initialised with themselves).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/coverage.h"
#include "core/median.h"
#include "core/neurons.h"
#include "core/noise.h"
#include "core/softmax.h"
#include "core/stencil.h"

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace compdx::compiled_for {
namespace COMPDX_ISA_NAMESPACE {
namespace {

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes)));

// ---- random bits ----------------------------------------------------------------------------------------------------------------

constexpr int kChunkBlocks = 64;
constexpr int kChunkPixels = kChunkBlocks * 8;

[[maybe_unused]] void store_block(const Words& words, uint16_t* out) {
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = static_cast<uint16_t>(words.w[i]);
        out[2 * i + 1] = static_cast<uint16_t>(words.w[i] >> 16);
    }
}

#if defined(__AVX512BW__)
// Eight blocks at a time, one in each 64-bit lane. vpmuludq reads only the lower half of a lane, so what the xors leave in the upper
// half needs no clearing between rounds.
void eight_blocks(const Stream& stream, uint32_t block, uint16_t* out) {
    const Words start = stream_counter(stream, Purpose::pixels, 0);
    // In this order of lanes the unpacks below bring the blocks into the order of memory.
    __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64(block), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
    __m512i c1 = _mm512_set1_epi64(start.w[1]);
    __m512i c2 = _mm512_set1_epi64(start.w[2]);
    __m512i c3 = _mm512_set1_epi64(start.w[3]);
    const __m512i m0 = _mm512_set1_epi64(kPhiloxM0);
    const __m512i m1 = _mm512_set1_epi64(kPhiloxM1);
    uint32_t k0 = stream_key0(stream);
    uint32_t k1 = stream_key1(stream);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const __m512i p0 = _mm512_mul_epu32(c0, m0);
        const __m512i p1 = _mm512_mul_epu32(c2, m1);
        c0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), c1), _mm512_set1_epi64(k0));
        c2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), c3), _mm512_set1_epi64(k1));
        c1 = p1;
        c3 = p0;
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    const __m512i low = _mm512_set1_epi64(0xffffffff);
    const __m512i a = _mm512_or_si512(_mm512_and_si512(c0, low), _mm512_slli_epi64(c1, 32));
    const __m512i b = _mm512_or_si512(_mm512_and_si512(c2, low), _mm512_slli_epi64(c3, 32));
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(a, b));
    _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi64(a, b));
}
constexpr int kGroup = 8;
#elif defined(__AVX2__)
void four_blocks(const Stream& stream, uint32_t block, uint16_t* out) {
    const Words start = stream_counter(stream, Purpose::pixels, 0);
    __m256i c0 = _mm256_add_epi64(_mm256_set1_epi64x(block), _mm256_setr_epi64x(0, 2, 1, 3));
    __m256i c1 = _mm256_set1_epi64x(start.w[1]);
    __m256i c2 = _mm256_set1_epi64x(start.w[2]);
    __m256i c3 = _mm256_set1_epi64x(start.w[3]);
    const __m256i m0 = _mm256_set1_epi64x(kPhiloxM0);
    const __m256i m1 = _mm256_set1_epi64x(kPhiloxM1);
    uint32_t k0 = stream_key0(stream);
    uint32_t k1 = stream_key1(stream);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const __m256i p0 = _mm256_mul_epu32(c0, m0);
        const __m256i p1 = _mm256_mul_epu32(c2, m1);
        c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), _mm256_set1_epi64x(k0));
        c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), _mm256_set1_epi64x(k1));
        c1 = p1;
        c3 = p0;
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    const __m256i a = _mm256_or_si256(_mm256_and_si256(c0, low), _mm256_slli_epi64(c1, 32));
    const __m256i b = _mm256_or_si256(_mm256_and_si256(c2, low), _mm256_slli_epi64(c3, 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_unpacklo_epi64(a, b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_unpackhi_epi64(a, b));
}
constexpr int kGroup = 4;
#else
constexpr int kGroup = 1;
#endif

// The bits of the pixels of `blocks` blocks from `block` on; out has room for kChunkPixels.
void fill_pixel_bits(const Stream& stream, uint32_t block, int blocks, uint16_t* out) {
    for (int i = 0; i < blocks; i += kGroup) {
#if defined(__AVX512BW__)
        eight_blocks(stream, block + i, out + 8 * i);
#elif defined(__AVX2__)
        four_blocks(stream, block + i, out + 8 * i);
#else
        store_block(stream_words(stream, Purpose::pixels, block + i), out + 8 * i);
#endif
    }
}

// ---- point operators --------------------------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
// normal_q12 of 32 pixels: both tables fit into four registers.
void fill_normals(const uint16_t* bits, int16_t* normals, int count) {
    const __m512i base0 = _mm512_loadu_si512(normal_base());
    const __m512i base1 = _mm512_loadu_si512(normal_base() + 32);
    const __m512i base2 = _mm512_loadu_si512(normal_base() + 64);
    const __m512i base3 = _mm512_loadu_si512(normal_base() + 96);
    const __m512i rise0 = _mm512_loadu_si512(normal_rise());
    const __m512i rise1 = _mm512_loadu_si512(normal_rise() + 32);
    const __m512i rise2 = _mm512_loadu_si512(normal_rise() + 64);
    const __m512i rise3 = _mm512_loadu_si512(normal_rise() + 96);
    const __m512i low9 = _mm512_set1_epi16(511);
    for (int i = 0; i < count; i += 32) {
        const __m512i r = _mm512_loadu_si512(bits + i);
        const __m512i u = _mm512_and_si512(r, _mm512_set1_epi16(0x7fff));
        const __mmask32 tail = _mm512_cmpge_epu16_mask(u, _mm512_set1_epi16(32256));
        const __m512i within = _mm512_and_si512(u, low9);
        const __m512i body_segment = _mm512_srli_epi16(u, 9);
        const __m512i tail_segment = _mm512_srli_epi16(within, 3);
        const __m512i body_base = _mm512_permutex2var_epi16(base0, body_segment, base1);
        const __m512i body_rise = _mm512_permutex2var_epi16(rise0, body_segment, rise1);
        const __m512i tail_base = _mm512_permutex2var_epi16(base2, tail_segment, base3);
        const __m512i tail_rise = _mm512_permutex2var_epi16(rise2, tail_segment, rise3);
        const __m512i fraction =
            _mm512_mask_slli_epi16(_mm512_slli_epi16(within, 7), tail, _mm512_and_si512(u, _mm512_set1_epi16(7)), 13);
        const __m512i base = _mm512_mask_blend_epi16(tail, body_base, tail_base);
        const __m512i rise = _mm512_mask_blend_epi16(tail, body_rise, tail_rise);
        const __m512i z = _mm512_add_epi16(base, _mm512_mulhi_epu16(rise, fraction));
        const __mmask32 negative = _mm512_movepi16_mask(r);
        _mm512_storeu_si512(normals + i, _mm512_mask_sub_epi16(z, negative, _mm512_setzero_si512(), z));
    }
}
#else
void fill_normals(const uint16_t* bits, int16_t* normals, int count) {
    for (int i = 0; i < count; ++i) normals[i] = static_cast<int16_t>(normal_q12(bits[i]));
}
#endif

template <class Body>
void for_each_chunk(const MutateTask& task, Body&& body) {
    alignas(64) uint16_t bits[kChunkPixels];
    const int32_t pixels = task.shape.size();
    for (int32_t first = 0; first < pixels; first += kChunkPixels) {
        const int32_t count = pixels - first < kChunkPixels ? pixels - first : kChunkPixels;
        fill_pixel_bits(task.stream, static_cast<uint32_t>(first) >> 3, (count + 7) / 8, bits);
        body(bits, task.parent + first, task.mutant + first, count);
    }
}

template <Overflow overflow>
void mutate_additive(const MutateTask& task) {
    for_each_chunk(
        task, [](const uint16_t* __restrict bits, const uint8_t* __restrict in, uint8_t* __restrict out, int count) {
            for (int i = 0; i < count; ++i) out[i] = additive<overflow>(in[i], bits[i]);
        });
}

template <Overflow overflow>
void mutate_multiplicative(const MutateTask& task) {
    const int32_t mean = task.draw.mean;
    const int32_t sigma = task.draw.sigma;
    for_each_chunk(
        task, [=](const uint16_t* __restrict bits, const uint8_t* __restrict in, uint8_t* __restrict out, int count) {
            alignas(64) int16_t normals[kChunkPixels];
            fill_normals(bits, normals, count);
            for (int i = 0; i < count; ++i) out[i] = multiplicative<overflow>(in[i], normals[i], mean, sigma);
        });
}

void mutate_blend(const MutateTask& task) {
    const int32_t weight = task.draw.size;
    for_each_chunk(
        task, [&](const uint16_t* __restrict bits, const uint8_t* __restrict in, uint8_t* __restrict out, int count) {
            const uint8_t* __restrict far = task.far + (in - task.parent);
            for (int i = 0; i < count; ++i) out[i] = blend(in[i], far[i], weight, bits[i]);
        });
}

void copy_image(const MutateTask& task) { std::memcpy(task.mutant, task.parent, task.shape.size()); }

void mutate_salt_pepper(const MutateTask& task) {
    copy_image(task);
    const uint32_t pixels = static_cast<uint32_t>(task.shape.size());
    const uint32_t specks = static_cast<uint32_t>(task.draw.size);
    for (uint32_t block = 0; 4 * block < 2 * specks; ++block) {
        const Words words = stream_words(task.stream, Purpose::positions, block);
        for (uint32_t i = 4 * block; i < 4 * block + 4 && i < 2 * specks; ++i) {
            task.mutant[below(words.w[i & 3u], pixels)] = i < specks ? 255 : 0;
        }
    }
}

void mutate_pixel(const MutateTask& task) {
    copy_image(task);
    for (int32_t i = 0; i < task.draw.size; ++i) {
        const PixelChange change = pixel_change(task.stream, i, task.shape.size());
        task.mutant[change.position] = change.value;
    }
}

// ---- stencils ---------------------------------------------------------------------------------------------------------------------

// A plane with its border around it, so that the loops below run over one flat range without a branch; what they compute in the border
// columns is thrown away. The arrays have room for a whole vector beyond the last pixel.
struct Padded {
    int32_t stride;
    int32_t flat;     // height * stride: outputs of a flat loop
    uint8_t* plane;   // [height + 2 * kMaxRadius][stride]
    uint16_t* sums;   // same extent
    uint8_t* result;  // [height][stride]
};

template <int32_t (*border)(int32_t, int32_t)>
Padded pad_plane(const MutateTask& task, const uint8_t* plane, int radius) {
    const Shape& shape = task.shape;
    const int32_t extent = static_cast<int32_t>(padded_extent(shape));
    const int32_t stride = shape.width + 2 * radius;
    Padded padded = {stride, shape.height * stride, task.scratch,
                     reinterpret_cast<uint16_t*>(task.scratch + 2 * static_cast<int64_t>(extent)),
                     task.scratch + extent};
    for (int32_t y = 0; y < shape.height + 2 * radius; ++y) {
        const uint8_t* from = plane + border(y - radius, shape.height) * shape.width;
        uint8_t* to = padded.plane + y * stride;
        for (int32_t x = 0; x < radius; ++x) {
            to[x] = from[border(x - radius, shape.width)];
            to[radius + shape.width + x] = from[border(shape.width + x, shape.width)];
        }
        std::memcpy(to + radius, from, shape.width);
    }
    return padded;
}

void unpad(const Padded& padded, const Shape& shape, uint8_t* plane) {
    for (int32_t y = 0; y < shape.height; ++y) {
        std::memcpy(plane + y * shape.width, padded.result + y * padded.stride, shape.width);
    }
}

template <int size>
void box_plane(const Padded& padded) {
    constexpr int extra = size - 1;
    const int32_t stride = padded.stride;
    // The padding is size / 2 wide on both sides, so output i averages inputs i - size / 2 ... i - size / 2 + size - 1.
    const uint8_t* __restrict in = padded.plane;
    uint16_t* __restrict sums = padded.sums;
    const int32_t rows_end = padded.flat + extra * stride;
    for (int32_t i = 0; i < rows_end; ++i) {
        uint16_t sum = 0;
        for (int j = 0; j < size; ++j) sum = static_cast<uint16_t>(sum + in[i + j]);
        sums[i] = sum;
    }
    uint8_t* __restrict out = padded.result;
    for (int32_t i = 0; i < padded.flat; ++i) {
        uint16_t sum = 0;
        for (int j = 0; j < size; ++j) sum = static_cast<uint16_t>(sum + sums[i + j * stride]);
        out[i] = box_mean<size>(sum);
    }
}

template <int size>
void gaussian_plane(const Padded& padded) {
    const int32_t stride = padded.stride;
    const uint8_t* __restrict in = padded.plane;
    uint16_t* __restrict sums = padded.sums;
    const int32_t rows_end = padded.flat + (size - 1) * stride;
    for (int32_t i = 0; i < rows_end; ++i) {
        uint16_t sum = 0;  // at most 255 * 64
        for (int j = 0; j < size; ++j) sum = static_cast<uint16_t>(sum + gaussian_tap<size>(j) * in[i + j]);
        sums[i] = sum;
    }
    uint8_t* __restrict out = padded.result;
    for (int32_t i = 0; i < padded.flat; ++i) {
        // Windows up to 5 stay below 2^16 and may use the narrower lanes.
        using Sum = std::conditional_t<(size < 7), uint16_t, uint32_t>;
        Sum sum = 0;
        for (int j = 0; j < size; ++j) sum = static_cast<Sum>(sum + gaussian_tap<size>(j) * sums[i + j * stride]);
        out[i] = gaussian_mean<size>(sum);
    }
}

template <int size>
void median_plane(const Padded& padded) {
    for (int32_t first = 0; first < padded.flat; first += kVectorBytes) {
        const uint8_t* in = padded.plane + first;
        const Bytes middle = median<size, Bytes>([in, &padded](int i) {
            Bytes values;
            std::memcpy(&values, in + i / size * padded.stride + i % size, sizeof values);
            return values;
        });
        std::memcpy(padded.result + first, &middle, sizeof middle);
    }
}

template <int32_t (*border)(int32_t, int32_t), void (*filter)(const Padded&)>
void mutate_planes(const MutateTask& task, int radius) {
    for (int32_t c = 0; c < task.shape.channels; ++c) {
        const int64_t offset = static_cast<int64_t>(c) * task.shape.plane();
        const Padded padded = pad_plane<border>(task, task.parent + offset, radius);
        filter(padded);
        unpad(padded, task.shape, task.mutant + offset);
    }
}

void mutate_box(const MutateTask& task) {
    switch (task.draw.size) {
        case 2:
            return mutate_planes<reflect101, box_plane<2>>(task, 1);
        case 3:
            return mutate_planes<reflect101, box_plane<3>>(task, 1);
        case 4:
            return mutate_planes<reflect101, box_plane<4>>(task, 2);
        case 5:
            return mutate_planes<reflect101, box_plane<5>>(task, 2);
        default:
            return copy_image(task);
    }
}

void mutate_gaussian(const MutateTask& task) {
    switch (task.draw.size) {
        case 3:
            return mutate_planes<reflect101, gaussian_plane<3>>(task, 1);
        case 5:
            return mutate_planes<reflect101, gaussian_plane<5>>(task, 2);
        case 7:
            return mutate_planes<reflect101, gaussian_plane<7>>(task, 3);
        default:
            return copy_image(task);
    }
}

void mutate_median(const MutateTask& task) {
    switch (task.draw.size) {
        case 3:
            return mutate_planes<replicate, median_plane<3>>(task, 1);
        case 5:
            return mutate_planes<replicate, median_plane<5>>(task, 2);
        case 7:
            return mutate_planes<replicate, median_plane<7>>(task, 3);
        default:
            return copy_image(task);
    }
}

// ---- one mutant -------------------------------------------------------------------------------------------------------------------

void bound_image(const MutateTask& task) {
    const uint8_t* __restrict origin = task.origin;
    uint8_t* __restrict mutant = task.mutant;
    const int32_t pixels = task.shape.size();
    for (int32_t i = 0; i < pixels; ++i) mutant[i] = bound_pixel(mutant[i], origin[i], task.linf);
}

void mutate(const MutateTask& task) {
    const bool wrap = task.overflow == Overflow::wrap;
    switch (task.draw.op) {
        case kAdditive:
            wrap ? mutate_additive<Overflow::wrap>(task) : mutate_additive<Overflow::clip>(task);
            break;
        case kSaltPepper:
            mutate_salt_pepper(task);
            break;
        case kMultiplicative:
            wrap ? mutate_multiplicative<Overflow::wrap>(task) : mutate_multiplicative<Overflow::clip>(task);
            break;
        case kPixel:
            mutate_pixel(task);
            break;
        case kBox:
            mutate_box(task);
            break;
        case kGaussian:
            mutate_gaussian(task);
            break;
        case kMedian:
            mutate_median(task);
            break;
        case kBlend:
            mutate_blend(task);
            break;
    }
    if (task.linf >= 0) bound_image(task);
}

// ---- model input ------------------------------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
// The 256 entries of four bytes fill half of the register file; permutes among them beat gathers from memory by a factor of two. Returns
// how many values it has looked up.
template <class Element>
int32_t look_up_by_permutes(const uint8_t* __restrict in, Element* __restrict out, const Element* __restrict table,
                            int32_t count) {
    static_assert(sizeof(Element) == 4, "sixteen entries a register");
    __m512i entries[16];
    for (int i = 0; i < 16; ++i) entries[i] = _mm512_loadu_si512(table + 16 * i);
    const int32_t whole = count / 16 * 16;
    for (int32_t i = 0; i < whole; i += 16) {
        const __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)));
        const __mmask16 bit5 = _mm512_test_epi32_mask(v, _mm512_set1_epi32(32));
        const __mmask16 bit6 = _mm512_test_epi32_mask(v, _mm512_set1_epi32(64));
        const __mmask16 bit7 = _mm512_test_epi32_mask(v, _mm512_set1_epi32(128));
        __m512i found[8];
        for (int j = 0; j < 8; ++j) found[j] = _mm512_permutex2var_epi32(entries[2 * j], v, entries[2 * j + 1]);
        for (int j = 0; j < 4; ++j) found[j] = _mm512_mask_blend_epi32(bit5, found[2 * j], found[2 * j + 1]);
        for (int j = 0; j < 2; ++j) found[j] = _mm512_mask_blend_epi32(bit6, found[2 * j], found[2 * j + 1]);
        _mm512_storeu_si512(out + i, _mm512_mask_blend_epi32(bit7, found[0], found[1]));
    }
    return whole;
}
#endif

template <class Element>
void look_up(const uint8_t* __restrict in, Element* __restrict out, const Element* __restrict table, int32_t count) {
    int32_t done = 0;
#if defined(__AVX512BW__)
    if constexpr (sizeof(Element) == 4) done = look_up_by_permutes(in, out, table, count);
#endif
    for (int32_t i = done; i < count; ++i) out[i] = table[in[i]];
}

template <class Element>
void write_table(const uint8_t* image, const Shape& shape, const Input& input, int64_t slot) {
    const Element* table = static_cast<const Element*>(input.table);
    Element* out = static_cast<Element*>(input.data) + slot * shape.size();
    const int32_t plane = shape.plane();
    const int32_t channels = shape.channels;
    if (input.layout == Layout::nchw || channels == 1) {
        for (int32_t c = 0; c < channels; ++c) {
            look_up(image + static_cast<int64_t>(c) * plane, out + static_cast<int64_t>(c) * plane, table + c * 256,
                    plane);
        }
        return;
    }
    for (int32_t c = 0; c < channels; ++c) {
        const uint8_t* from = image + static_cast<int64_t>(c) * plane;
        for (int32_t i = 0; i < plane; ++i) out[static_cast<int64_t>(i) * channels + c] = table[c * 256 + from[i]];
    }
}

void write_bytes(const uint8_t* image, const Shape& shape, const Input& input, int64_t slot) {
    uint8_t* out = static_cast<uint8_t*>(input.data) + slot * shape.size();
    const int32_t plane = shape.plane();
    if (input.layout == Layout::nchw || shape.channels == 1) {
        std::memcpy(out, image, shape.size());
        return;
    }
    for (int32_t c = 0; c < shape.channels; ++c) {
        for (int32_t i = 0; i < plane; ++i) out[static_cast<int64_t>(i) * shape.channels + c] = image[c * plane + i];
    }
}

void write_input(const uint8_t* image, const Shape& shape, const Input& input, int64_t slot) {
    switch (input.type) {
        case InputType::uint8:
            return write_bytes(image, shape, input, slot);
        case InputType::float32:
            return write_table<uint32_t>(image, shape, input, slot);
        case InputType::half:
            return write_table<uint16_t>(image, shape, input, slot);
    }
}

// ---- scores -----------------------------------------------------------------------------------------------------------------------

struct Largest {
    int32_t label;  // the lowest of equals
    float score;
    float second;  // of the other classes
};

#if defined(__AVX512BW__)
// 16 classes at a time. Compilers take eight times as long: they see neither the products of 32 bits nor the place of a maximum.

template <class Body>
void for_each_vector(const ScoreTask& task, Body&& body) {
    for (int32_t first = 0; first < task.classes; first += 16) {
        const int32_t left = task.classes - first;
        const __mmask16 lanes = left < 16 ? static_cast<__mmask16>((1u << left) - 1) : static_cast<__mmask16>(0xffff);
        body(first, lanes, _mm512_maskz_loadu_ps(lanes, task.scores + first));
    }
}

bool all_finite(const ScoreTask& task) {
    __mmask16 broken = 0;
    for_each_vector(task, [&](int32_t, __mmask16, __m512 x) {
        broken |= _mm512_fpclass_ps_mask(x, 0x99);  // quiet and signalling NaN, both infinities
    });
    return broken == 0;
}

Largest largest_of(const ScoreTask& task) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 best = lowest;
    for_each_vector(task, [&](int32_t, __mmask16 lanes, __m512 x) { best = _mm512_mask_max_ps(best, lanes, best, x); });
    Largest largest = {-1, _mm512_reduce_max_ps(best), 0};
    best = lowest;
    for_each_vector(task, [&](int32_t first, __mmask16 lanes, __m512 x) {
        const __mmask16 equal = _mm512_mask_cmpeq_ps_mask(lanes, x, _mm512_set1_ps(largest.score));
        if (largest.label < 0 && equal != 0) {
            largest.label = first + __builtin_ctz(equal);
            lanes &= static_cast<__mmask16>(~(equal & -equal));
        }
        best = _mm512_mask_max_ps(best, lanes, best, x);
    });
    largest.second = _mm512_reduce_max_ps(best);
    return largest;
}

inline __m512i high_products(__m512i a, __m512i b) {
    const __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(a, b), 32);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    return _mm512_mask_blend_epi32(0xaaaa, even, odd);
}

// exp_q24 of 16 classes; 0 in the other lanes.
inline __m512i exponentials_q24(__m512 largest, __mmask16 lanes, __m512 scores) {
    const __m512 t = _mm512_sub_ps(largest, scores);
    lanes = _mm512_mask_cmp_ps_mask(lanes, t, _mm512_set1_ps(17.0f), _CMP_LT_OQ);
    const __m512i q27 = _mm512_cvttps_epu32(_mm512_mul_ps(t, _mm512_set1_ps(134217728.0f)));
    const __m512i log2e = _mm512_set1_epi32(static_cast<int32_t>(kLog2eQ31));
    const __m512i y = _mm512_or_si512(_mm512_slli_epi32(high_products(q27, log2e), 1),
                                      _mm512_srli_epi32(_mm512_mullo_epi32(q27, log2e), 31));
    const __m512i shift = _mm512_srli_epi32(y, 27);
    const __m512i fraction = _mm512_slli_epi32(y, 5);
    const uint32_t* c = exp2_coefficients();
    __m512i q = _mm512_set1_epi32(static_cast<int32_t>(c[5]));
    for (int i = 4; i >= 0; --i) {
        q = _mm512_sub_epi32(_mm512_set1_epi32(static_cast<int32_t>(c[i])), high_products(q, fraction));
    }
    const __m512i e = _mm512_sub_epi32(_mm512_set1_epi32(INT32_MIN), _mm512_srli_epi32(high_products(q, fraction), 1));
    const __m512i half = _mm512_sllv_epi32(_mm512_set1_epi32(1 << 6), shift);
    return _mm512_maskz_srlv_epi32(lanes, _mm512_add_epi32(e, half), _mm512_add_epi32(shift, _mm512_set1_epi32(7)));
}

uint64_t sum_exponentials(const ScoreTask& task, float largest) {
    __m512i sums = _mm512_setzero_si512();
    for_each_vector(task, [&](int32_t, __mmask16 lanes, __m512 x) {
        const __m512i e = exponentials_q24(_mm512_set1_ps(largest), lanes, x);
        sums = _mm512_add_epi64(sums, _mm512_and_si512(e, _mm512_set1_epi64(0xffffffff)));
        sums = _mm512_add_epi64(sums, _mm512_srli_epi64(e, 32));
    });
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(sums));
}

void store_probabilities(const ScoreTask& task, float largest, uint32_t reciprocal) {
    for_each_vector(task, [&](int32_t first, __mmask16 lanes, __m512 x) {
        const __m512i high = high_products(exponentials_q24(_mm512_set1_ps(largest), lanes, x),
                                           _mm512_set1_epi32(static_cast<int32_t>(reciprocal)));
        const __m512i q15 = _mm512_srli_epi32(_mm512_add_epi32(high, _mm512_set1_epi32(1 << 8)), 9);
        _mm512_mask_cvtepi32_storeu_epi16(task.state + first, lanes, q15);
    });
}
#else
bool all_finite(const ScoreTask& task) {
    uint32_t broken = 0;
    for (int32_t k = 0; k < task.classes; ++k) broken |= !is_finite(task.scores[k]);
    return broken == 0;
}

Largest largest_of(const ScoreTask& task) {
    const float* scores = task.scores;
    int32_t label = 0;
    for (int32_t k = 1; k < task.classes; ++k) {
        if (scores[k] > scores[label]) label = k;
    }
    float second = scores[label == 0 ? 1 : 0];
    for (int32_t k = 0; k < task.classes; ++k) {
        if (k != label && scores[k] > second) second = scores[k];
    }
    return {label, scores[label], second};
}

uint64_t sum_exponentials(const ScoreTask& task, float largest) {
    uint64_t sum = 0;
    for (int32_t k = 0; k < task.classes; ++k) sum += exp_q24(largest, task.scores[k]);
    return sum;
}

void store_probabilities(const ScoreTask& task, float largest, uint32_t reciprocal) {
    for (int32_t k = 0; k < task.classes; ++k) {
        task.state[k] = static_cast<uint16_t>(softmax_q15(exp_q24(largest, task.scores[k]), reciprocal));
    }
}
#endif

Scored score(const ScoreTask& task) {
    if (!all_finite(task)) return {false, -1, 0, 0};
    const Largest largest = largest_of(task);
    if (task.kind == Scores::probabilities) {
        for (int32_t k = 0; k < task.classes; ++k) {
            task.state[k] = static_cast<uint16_t>(probability_q15(probability_q30(task.scores[k])));
        }
        const uint32_t confidence = probability_q30(largest.score);
        return {true, largest.label, confidence, confidence - probability_q30(largest.second)};
    }
    // The exponentials are computed twice rather than stored: K has no bound.
    const uint64_t sum = sum_exponentials(task, largest.score);
    store_probabilities(task, largest.score, softmax_reciprocal(sum));
    const uint32_t margin = softmax_margin_q30(exp_q24(largest.score, largest.second), sum);
    return {true, largest.label, softmax_top_q30(sum), margin};
}

uint64_t state_hash(const uint16_t* state, int32_t classes, int model, uint32_t grid) {
    uint64_t hash = 0;
    for (int32_t k = 0; k < classes; ++k) hash += state_term(model, k, state_cell(state[k], grid));
    return hash;
}

uint64_t squared_distance(const uint16_t* a, const uint16_t* b, int64_t count) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += squared_difference(a[i], b[i]);
    return sum;
}

// ---- gradients ----------------------------------------------------------------------------------------------------------------------

constexpr int32_t kChunkValues = 1024;  // stay in the first cache, and their squared distances within 32 bits

template <bool has_total>
Change descend_values(const Channel& channel, const float* __restrict gradient, const uint8_t* __restrict origin,
                      const float* __restrict centres, float* __restrict state, uint8_t* __restrict picture,
                      int32_t count) {
    uint32_t squares = 0;
    int32_t largest = 0;
    for (int32_t i = 0; i < count; ++i) {
        state[i] = descended(channel, state[i], gradient[i], has_total ? centres[i] : 0.0f);
        picture[i] = picture_of(channel, state[i]);
        const int32_t d = static_cast<int32_t>(picture[i]) - origin[i];
        const int32_t magnitude = d < 0 ? -d : d;
        squares += static_cast<uint32_t>(d * d);
        largest = magnitude > largest ? magnitude : largest;
    }
    return {squares, largest};
}

Change descend(const DescendTask& task, int64_t image) {
    alignas(64) float centres[kChunkValues];
    const auto descend_some = task.total != nullptr ? descend_values<true> : descend_values<false>;
    const int32_t plane = task.shape.plane();
    Change change = {0, 0};
    for (int32_t c = 0; c < task.shape.channels; ++c) {
        const Channel channel = channel_of(task, c);
        const float* table = task.table + c * 256;
        for (int32_t first = 0; first < plane; first += kChunkValues) {
            const int32_t count = plane - first < kChunkValues ? plane - first : kChunkValues;
            const int64_t at = image * task.shape.size() + static_cast<int64_t>(c) * plane + first;
            float* state = task.state + at;
            uint8_t* picture = task.picture + at;
            if (task.total != nullptr) look_up(task.origin + at, centres, table, count);
            const Change here =
                descend_some(channel, task.gradient + at, task.origin + at, centres, state, picture, count);
            if (task.lattice) look_up(picture, state, table, count);
            change.squares += here.squares;
            change.largest = here.largest > change.largest ? here.largest : change.largest;
        }
    }
    return change;
}

// ---- neurons ------------------------------------------------------------------------------------------------------------------------

int64_t count_lost(const Run& original, const Run& compressed, int64_t count) {
    const float* __restrict a = original.data;
    const float* __restrict b = compressed.data;
    int64_t lost = 0;
    if (original.stride == 1 && compressed.stride == 1) {
        for (int64_t first = 0; first < count; first += kChunkValues) {
            const int64_t end = count - first < kChunkValues ? count : first + kChunkValues;
            int32_t here = 0;
            for (int64_t i = first; i < end; ++i) here += is_lost(a[i], b[i]);
            lost += here;
        }
        return lost;
    }
    for (int64_t i = 0; i < count; ++i) lost += is_lost(a[i * original.stride], b[i * compressed.stride]);
    return lost;
}

void cover(const Run& values, uint8_t* __restrict covered, int64_t count) {
    const float* __restrict data = values.data;
    if (values.stride == 1) {
        for (int64_t i = 0; i < count; ++i) covered[i] = data[i] > 0.0f ? 1 : covered[i];
        return;
    }
    for (int64_t i = 0; i < count; ++i) covered[i] = data[i * values.stride] > 0.0f ? 1 : covered[i];
}

// ---- slices -------------------------------------------------------------------------------------------------------------------------

uint32_t multiply(const float* __restrict weight, const float* __restrict delta, int32_t count,
                  float* __restrict products) {
    uint32_t largest = 0;
    for (int32_t i = 0; i < count; ++i) {
        const float product = product_of(weight[i], delta[i]);
        const uint32_t magnitude = magnitude_of(product);
        products[i] = product;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

int64_t sum_scaled(const float* __restrict products, int32_t count, double scale) {
    int64_t sum = 0;
    for (int32_t i = 0; i < count; ++i) sum += scaled(products[i], scale);
    return sum;
}

// Few of the products are within the range: whole vectors are passed over, and bits tell which of the others are.
#if defined(__AVX512BW__)
constexpr int32_t kGathered = 16;

uint32_t within_range(const float* products, uint32_t low, uint32_t high) {
    const __m512i bits = _mm512_loadu_si512(products);
    const __m512i magnitudes = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    const __m512i above = _mm512_sub_epi32(magnitudes, _mm512_set1_epi32(static_cast<int32_t>(low + 1)));
    return _mm512_cmplt_epu32_mask(above, _mm512_set1_epi32(static_cast<int32_t>(high - low)));
}
#elif defined(__AVX2__)
constexpr int32_t kGathered = 8;

// Magnitudes and bounds are below 2^31, so that signed comparisons do.
uint32_t within_range(const float* products, uint32_t low, uint32_t high) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(products));
    const __m256i magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i above = _mm256_cmpgt_epi32(magnitudes, _mm256_set1_epi32(static_cast<int32_t>(low)));
    const __m256i beyond = _mm256_cmpgt_epi32(magnitudes, _mm256_set1_epi32(static_cast<int32_t>(high)));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_andnot_si256(beyond, above))));
}
#endif

int32_t gather(const float* __restrict products, int32_t count, uint32_t low, uint32_t high,
               uint64_t* __restrict keys) {
    int32_t found = 0;
    int32_t tap = 0;
#if defined(__AVX2__)
    for (; tap + kGathered <= count; tap += kGathered) {
        for (uint32_t left = within_range(products + tap, low, high); left != 0; left &= left - 1) {
            const int32_t here = tap + __builtin_ctz(left);
            keys[found++] = key_of(magnitude_of(products[here]), static_cast<uint32_t>(here));
        }
    }
#endif
    for (; tap < count; ++tap) {
        const uint32_t magnitude = magnitude_of(products[tap]);
        keys[found] = key_of(magnitude, static_cast<uint32_t>(tap));
        found += magnitude - low - 1 < high - low;  // unsigned
    }
    return found;
}

void contribute(const float* __restrict products, int32_t count, uint32_t bound, int32_t sign,
                int32_t* __restrict weights, int32_t* __restrict inputs) {
    for (int32_t i = 0; i < count; ++i) {
        const int32_t contribution = contribution_of(products[i], bound, sign);
        weights[i] += contribution;
        inputs[i] += contribution;
    }
}

}  // namespace

const Loops& loops() {
    static const Loops table = {mutate,     write_input, score,    state_hash, squared_distance, descend,
                                count_lost, cover,       multiply, sum_scaled, gather,           contribute};
    return table;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx::compiled_for
