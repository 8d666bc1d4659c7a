// One mutant by one CTA. The operator is the same for all threads, so no branch on it diverges.
#pragma once

#include "core/networks.h"
#include "core/noise.h"
#include "core/stencil.h"
#include "cuda/common.cuh"

namespace compdx::cuda {

struct Mutation {
    Draw draw;
    Stream stream;
    Shape shape;
    Overflow overflow;
    int32_t linf;
    const uint8_t* parent;  // [C, H, W]
    const uint8_t* origin;  // seed image; read only when linf >= 0
    const uint8_t* far;     // [C, H, W], the other end of a blend; read by no other operator
    uint8_t* mutant;        // [C, H, W], not the parent
};

// ---- point operators --------------------------------------------------------------------------------------------------------------

constexpr int kBlockPixels = 8;  // what one Philox block serves
using Pixels = Pack<uint8_t, kBlockPixels>;

// Sends the parent through change(pixels, block), then through the bound.
template <class Change>
__device__ __forceinline__ void change_pixels(const Mutation& mutation, const Change& change) {
    const int32_t count = mutation.shape.size();
    for (int32_t first = kBlockPixels * threadIdx.x; first < count; first += kBlockPixels * blockDim.x) {
        const int32_t left = count - first;
        Pixels pixels = load_pack<kBlockPixels>(mutation.parent + first, left);
        change(pixels, static_cast<uint32_t>(first) / kBlockPixels);
        if (mutation.linf >= 0) {
            const Pixels origin = load_pack<kBlockPixels>(mutation.origin + first, left);
#pragma unroll
            for (int i = 0; i < kBlockPixels; ++i) pixels.v[i] = bound_pixel(pixels.v[i], origin.v[i], mutation.linf);
        }
        store_pack(mutation.mutant + first, left, pixels);
    }
}

__device__ __forceinline__ void put_pixel(const Mutation& mutation, int32_t place, uint8_t value) {
    mutation.mutant[place] = mutation.linf < 0 ? value : bound_pixel(value, mutation.origin[place], mutation.linf);
}

__device__ __forceinline__ void copy_image(const Mutation& mutation) {
    change_pixels(mutation, [](Pixels&, uint32_t) {});
}

template <Overflow overflow>
__device__ __forceinline__ void mutate_additive(const Mutation& mutation) {
    change_pixels(mutation, [&](Pixels& pixels, uint32_t block) {
        const Words words = stream_words(mutation.stream, Purpose::pixels, block);
#pragma unroll
        for (int i = 0; i < kBlockPixels; ++i) {
            pixels.v[i] = additive<overflow>(pixels.v[i], static_cast<uint16_t>(pixel_bits(words, i)));
        }
    });
}

template <Overflow overflow>
__device__ __forceinline__ void mutate_multiplicative(const Mutation& mutation) {
    change_pixels(mutation, [&](Pixels& pixels, uint32_t block) {
        const Words words = stream_words(mutation.stream, Purpose::pixels, block);
#pragma unroll
        for (int i = 0; i < kBlockPixels; ++i) {
            const int32_t normal = normal_q12(static_cast<uint16_t>(pixel_bits(words, i)));
            pixels.v[i] = multiplicative<overflow>(pixels.v[i], normal, mutation.draw.mean, mutation.draw.sigma);
        }
    });
}

__device__ __forceinline__ void mutate_blend(const Mutation& mutation) {
    const int32_t count = mutation.shape.size();
    change_pixels(mutation, [&](Pixels& pixels, uint32_t block) {
        const int32_t first = static_cast<int32_t>(block) * kBlockPixels;
        const Pixels far = load_pack<kBlockPixels>(mutation.far + first, count - first);
        const Words words = stream_words(mutation.stream, Purpose::pixels, block);
#pragma unroll
        for (int i = 0; i < kBlockPixels; ++i) {
            pixels.v[i] = blend(pixels.v[i], far.v[i], mutation.draw.size, static_cast<uint16_t>(pixel_bits(words, i)));
        }
    });
}

__device__ __forceinline__ void scatter_specks(const Mutation& mutation, uint32_t first, uint32_t end, uint8_t value) {
    const uint32_t pixels = static_cast<uint32_t>(mutation.shape.size());
    for (uint32_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        put_pixel(mutation, speck_position(mutation.stream, i, pixels), value);
    }
}

__device__ __forceinline__ void mutate_salt_pepper(const Mutation& mutation) {
    const uint32_t specks = static_cast<uint32_t>(mutation.draw.size);
    copy_image(mutation);
    __syncthreads();
    scatter_specks(mutation, 0, specks, 255);
    __syncthreads();  // pepper falls on salt
    scatter_specks(mutation, specks, 2 * specks, 0);
}

__device__ __forceinline__ void mutate_pixel(const Mutation& mutation) {
    copy_image(mutation);
    __syncthreads();
    if (threadIdx.x != 0) return;  // at most nine, and a later one may hit the same pixel
    for (int32_t i = 0; i < mutation.draw.size; ++i) {
        const PixelChange change = pixel_change(mutation.stream, i, mutation.shape.size());
        put_pixel(mutation, change.position, change.value);
    }
}

// ---- stencils ---------------------------------------------------------------------------------------------------------------------

// Planes are worked off in tiles, staged in shared memory with the border around them. A thread makes `across` times `down` neighbouring
// pixels.
constexpr int kTileWidth = 64;
constexpr int kTileHeight = 32;
constexpr int kTileMargin = 4;                             // of a row, for the border; its pixels begin where words do
constexpr int kTileStride = kTileWidth + 2 * kTileMargin;  // rows that start in different banks
constexpr int kTileBytes = (kTileHeight + 2 * kMaxRadius) * kTileStride;
static_assert(kTileMargin >= kMaxRadius, "the border is staged too");

// One for all filters: each instance of a template would reserve its own.
__device__ __forceinline__ uint8_t* shared_tile() {
    __shared__ __align__(16) uint8_t tile[kTileBytes];
    return tile;
}

template <int extent>
struct Box {
    static constexpr int size = extent;
    __device__ static constexpr uint32_t tap(int) { return 1; }
    __device__ static uint8_t mean(uint32_t sum) { return box_mean<extent>(static_cast<uint16_t>(sum)); }
};

template <int extent>
struct Gaussian {
    static constexpr int size = extent;
    __device__ static constexpr uint32_t tap(int i) { return gaussian_tap<extent>(i); }
    __device__ static uint8_t mean(uint32_t sum) { return gaussian_mean<extent>(sum); }
};

// A weighted mean, first along the rows, then down the column. Each row of the run's window is summed once.
template <class Weights>
struct Mean {
    static constexpr int size = Weights::size;
    static constexpr int across = 1;
    static constexpr int down = 8;

    __device__ static int32_t border(int32_t i, int32_t length) { return reflect101(i, length); }

    __device__ static Pack<uint8_t, across * down> pixels(const uint8_t* window) {
        uint32_t rows[down + size - 1];
#pragma unroll
        for (int y = 0; y < down + size - 1; ++y) {
            rows[y] = 0;
#pragma unroll
            for (int x = 0; x < size; ++x) rows[y] += Weights::tap(x) * window[y * kTileStride + x];
        }
        Pack<uint8_t, across * down> result;
#pragma unroll
        for (int y = 0; y < down; ++y) {
            uint32_t sum = 0;
#pragma unroll
            for (int i = 0; i < size; ++i) sum += Weights::tap(i) * rows[y + i];
            result.v[y] = Weights::mean(sum);
        }
        return result;
    }
};

// Two pixels in one register: Hopper takes minima and maxima of both in one instruction.
struct PixelPair {
    uint32_t halves;
};

__device__ __forceinline__ void order(PixelPair& a, PixelPair& b) {
    const uint32_t low = __vminu2(a.halves, b.halves);
    b.halves = __vmaxu2(a.halves, b.halves);
    a.halves = low;
}

// Two rows of windows at once, one in each half of a register.
template <int extent>
struct Median {
    static constexpr int size = extent;
    static constexpr int twins = extent == 7 ? 1 : 2;  // the widest windows fill the registers sooner
    static constexpr int across = 2 * twins;
    static constexpr int down = 2;

    __device__ static int32_t border(int32_t i, int32_t length) { return replicate(i, length); }

    __device__ static Pack<uint8_t, across * down> pixels(const uint8_t* window) {
        PixelPair middle[across];
        medians<size, twins>(
            [window](int column, PixelPair* values) {
                uint32_t upper = window[column];
#pragma unroll
                for (int i = 0; i < size; ++i) {
                    const uint32_t lower = window[(i + 1) * kTileStride + column];
                    values[i].halves = upper | lower << 16;
                    upper = lower;
                }
            },
            middle);
        Pack<uint8_t, across * down> result;
#pragma unroll
        for (int i = 0; i < across; ++i) {
            result.v[i] = static_cast<uint8_t>(middle[i].halves);
            result.v[across + i] = static_cast<uint8_t>(middle[i].halves >> 16);
        }
        return result;
    }
};

// Eight threads a row: planes are narrow, and so few of them fall beyond its end. Pixels go in words, the border one by one.
template <class Filter>
__device__ __forceinline__ void stage_tile(const uint8_t* plane, const Shape& shape, int32_t left, int32_t top,
                                           int32_t width, int32_t rows, uint8_t* tile) {
    constexpr int together = 8;
    constexpr int each = 4;
    constexpr int radius = Filter::size / 2;  // even windows reach one pixel less far to the right
    static_assert(Filter::size - 1 <= together, "one thread for each pixel of the border");
    const int32_t turn = threadIdx.x % together;
    const int32_t beside = turn < radius ? turn - radius : width + turn - radius;
    const int32_t from = Filter::border(left + beside, shape.width);
    for (int32_t y = threadIdx.x / together; y < rows; y += blockDim.x / together) {
        const uint8_t* row = plane + static_cast<int64_t>(Filter::border(top - radius + y, shape.height)) * shape.width;
        uint8_t* to = tile + y * kTileStride + kTileMargin;
        for (int32_t x = each * turn; x < width; x += each * together) {
            store_pack(to + x, width - x, load_pack<each>(row + left + x, width - x));
        }
        if (turn < Filter::size - 1) to[beside] = row[from];
    }
}

template <class Filter>
__device__ __forceinline__ void filter_tile(const Mutation& mutation, int32_t plane, int32_t left, int32_t top) {
    constexpr int across = Filter::across;
    constexpr int down = Filter::down;
    constexpr int radius = Filter::size / 2;
    static_assert(kTileWidth % across == 0 && kTileHeight % down == 0, "tiles are whole pieces of work");
    uint8_t* tile = shared_tile();
    const Shape& shape = mutation.shape;
    const int32_t width = min(kTileWidth, shape.width - left);
    const int32_t height = min(kTileHeight, shape.height - top);
    const int32_t columns = (width + across - 1) / across;
    const int32_t rows = (height + down - 1) / down;
    stage_tile<Filter>(mutation.parent + plane, shape, left, top, width, rows * down + Filter::size - 1, tile);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < columns * rows; i += blockDim.x) {
        const int32_t y = i / columns * down;
        const int32_t x = i % columns * across;
        const auto pixels = Filter::pixels(tile + y * kTileStride + kTileMargin - radius + x);
        const int32_t place = plane + (top + y) * shape.width + left + x;
#pragma unroll
        for (int j = 0; j < across * down; ++j) {
            if (x + j % across < width && y + j / across < height) {
                put_pixel(mutation, place + j / across * shape.width + j % across, pixels.v[j]);
            }
        }
    }
    __syncthreads();  // the next tile takes the place of this one
}

template <class Filter>
__device__ __forceinline__ void filter_image(const Mutation& mutation) {
    const Shape& shape = mutation.shape;
    for (int32_t c = 0; c < shape.channels; ++c) {
        for (int32_t top = 0; top < shape.height; top += kTileHeight) {
            for (int32_t left = 0; left < shape.width; left += kTileWidth) {
                filter_tile<Filter>(mutation, c * shape.plane(), left, top);
            }
        }
    }
}

__device__ __forceinline__ void mutate_box(const Mutation& mutation) {
    switch (mutation.draw.size) {
        case 2:
            return filter_image<Mean<Box<2>>>(mutation);
        case 3:
            return filter_image<Mean<Box<3>>>(mutation);
        case 4:
            return filter_image<Mean<Box<4>>>(mutation);
        case 5:
            return filter_image<Mean<Box<5>>>(mutation);
        default:
            return copy_image(mutation);
    }
}

__device__ __forceinline__ void mutate_gaussian(const Mutation& mutation) {
    switch (mutation.draw.size) {
        case 3:
            return filter_image<Mean<Gaussian<3>>>(mutation);
        case 5:
            return filter_image<Mean<Gaussian<5>>>(mutation);
        case 7:
            return filter_image<Mean<Gaussian<7>>>(mutation);
        default:
            return copy_image(mutation);
    }
}

__device__ __forceinline__ void mutate_median(const Mutation& mutation) {
    switch (mutation.draw.size) {
        case 3:
            return filter_image<Median<3>>(mutation);
        case 5:
            return filter_image<Median<5>>(mutation);
        case 7:
            return filter_image<Median<7>>(mutation);
        default:
            return copy_image(mutation);
    }
}

// ---- one mutant -------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mutate_image(const Mutation& mutation) {
    const bool wrap = mutation.overflow == Overflow::wrap;
    switch (mutation.draw.op) {
        case kAdditive:
            return wrap ? mutate_additive<Overflow::wrap>(mutation) : mutate_additive<Overflow::clip>(mutation);
        case kSaltPepper:
            return mutate_salt_pepper(mutation);
        case kMultiplicative:
            return wrap ? mutate_multiplicative<Overflow::wrap>(mutation)
                        : mutate_multiplicative<Overflow::clip>(mutation);
        case kPixel:
            return mutate_pixel(mutation);
        case kBox:
            return mutate_box(mutation);
        case kGaussian:
            return mutate_gaussian(mutation);
        case kMedian:
            return mutate_median(mutation);
        case kBlend:
            return mutate_blend(mutation);
    }
}

}  // namespace compdx::cuda
