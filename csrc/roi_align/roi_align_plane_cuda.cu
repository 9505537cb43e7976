// roi_align forward for many small crops: a plane of the maps in shared memory, a warp a box.
//
// A throw-away prototype of this design took 80 us for [2, 256, 128, 128], 512 boxes to 7x7, float32, on an H200, where
// the kernel of roi_align_cuda.cu takes 1,028 us; this one is not yet measured.
//
// With one or two samples a bin and axis, a bin reads at most four pixels an axis. They are written down once for all
// channels (`Tap`). A lane then stands for one tap of a column of bins, and adds up the rows that its bins read; four
// lanes make a bin.
#include "core/cuda_copy.cuh"
#include "core/cuda_math.cuh"
#include "roi_align/roi_align_taps.cuh"

namespace posekd {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kBins = 8;  // columns of bins, and rows, that a warp works on at once

struct Params {
  RoiGeometry boxes;
  TapTables taps;
  const void* maps;
  void* crops;
  int channels;
};

// `count` neighbouring elements into shared memory; complete after a barrier.
template <class T>
__device__ __forceinline__ void fetch(const T* from, int count, T* to) {
  constexpr int kSize = kVector<T>;
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
  const int packs = aligned ? count / kSize : 0;
  for (int i = threadIdx.x; i < packs; i += kThreads) copy_async<16>(to + i * kSize, from + i * kSize);
  for (int i = packs * kSize + static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = from[i];
  copy_wait();
}

// What the eight rows of bins that `taps` belong to read in the column at `x`.
template <class T>
__device__ __forceinline__ void down_the_column(const T* plane, const Tap* taps, const Tap& x, float (&sums)[kBins]) {
#pragma unroll
  for (int row = 0; row < kBins; ++row) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const Tap y = taps[row * kTaps + k];
      if (y.weight >= 0.0f) sum += y.weight * to_float(plane[y.offset + x.offset]);
    }
    sums[row] = x.weight >= 0.0f ? x.weight * sum : 0.0f;
  }
}

// Adds up the four lanes of a column of bins: lane l of them gets rows 4 (l % 2) + 2 (l / 2) and the next.
__device__ __forceinline__ void add_lanes(const float (&sums)[kBins], float (&bins)[2]) {
  const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
  float half[4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
    half[k] = (odd ? sums[k + 4] : sums[k]) + __shfl_xor_sync(kAllLanes, odd ? sums[k] : sums[k + 4], 1);
#pragma unroll
  for (int k = 0; k < 2; ++k)
    bins[k] = (upper ? half[k + 2] : half[k]) + __shfl_xor_sync(kAllLanes, upper ? half[k] : half[k + 2], 2);
}

// By a warp: the crops of box r of `channels` planes. `rows` is shared memory for a warp's 32 taps.
template <class T>
__device__ __forceinline__ void crop_box(const Params& p, int r, const T* planes, int channels, Tap* rows, T* crops) {
  const int P = p.boxes.out_height, Q = p.boxes.out_width, pixels = p.boxes.height * p.boxes.width;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tap none{0, static_cast<float>(kUntouched)};
  for (int q0 = 0; q0 < Q; q0 += kBins) {
    const int x_tap = q0 * kTaps + lane, q = q0 + lane / kTaps;
    const Tap x = x_tap < Q * kTaps ? p.taps.x[static_cast<int64_t>(r) * Q * kTaps + x_tap] : none;
    for (int p0 = 0; p0 < P; p0 += kBins) {
      const int y_tap = p0 * kTaps + lane;
      __syncwarp();  // the rows before have been read
      rows[lane] = y_tap < P * kTaps ? p.taps.y[static_cast<int64_t>(r) * P * kTaps + y_tap] : none;
      __syncwarp();
      const int first = p0 + 4 * (lane & 1) + (lane & 2);
      for (int c = 0; c < channels; ++c) {
        float sums[kBins], bins[2];
        down_the_column(planes + c * pixels, rows, x, sums);
        add_lanes(sums, bins);
        for (int k = 0; k < 2; ++k)
          if (q < Q && first + k < P) crops[(c * P + first + k) * Q + q] = from_float<T>(bins[k]);
      }
    }
  }
}

// A block takes kPlanes channels of an image.
template <class T, int kPlanes>
__global__ void __launch_bounds__(kThreads, 2) plane_kernel(const __grid_constant__ Params p) {
  POSEKD_DYNAMIC_SHARED(unsigned char, shared);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, n = blockIdx.y,
            first = static_cast<int>(blockIdx.x) * kPlanes;
  const int pixels = p.boxes.height * p.boxes.width, planes = min(kPlanes, p.channels - first);
  Tap* const rows = reinterpret_cast<Tap*>(shared) + warp * kWarp;
  T* const maps = reinterpret_cast<T*>(shared + sizeof(Tap) * kThreads);
  fetch(static_cast<const T*>(p.maps) + (static_cast<int64_t>(n) * p.channels + first) * pixels, planes * pixels, maps);
  __syncthreads();
  const int64_t size = static_cast<int64_t>(p.boxes.out_height) * p.boxes.out_width;
  for (int r = warp; r < p.boxes.count; r += kWarps)
    if (p.taps.image[r] == n)
      crop_box<T>(p, r, maps, planes, rows,
                  static_cast<T*>(p.crops) + (static_cast<int64_t>(r) * p.channels + first) * size);
}

constexpr size_t kTapBytes = sizeof(Tap) * kThreads;

// The fast path's conditions, all of them.
bool fits(const RoiAlign& args, const CudaContext& context) {
  const int64_t pixels = static_cast<int64_t>(args.height()) * args.width();
  const int64_t bins = static_cast<int64_t>(args.out_height()) * args.out_width();
  if (args.sampling_ratio < 1 || args.sampling_ratio > kTaps / 2 || !args.scratch || args.images() > 65535)
    return false;
  if (bins > 256 || args.count() * bins < args.images() * pixels / 4) return false;  // crops worth a plane's loading
  return pixels * item_size(args.maps.dtype) + kTapBytes <= largest_shared(context);
}

template <class T>
void launch_planes(const Params& p, const CudaContext& context) {
  const size_t plane = sizeof(T) * static_cast<size_t>(p.boxes.height) * static_cast<size_t>(p.boxes.width);
  const bool two = p.channels > 1 && 2 * plane + kTapBytes <= largest_shared(context);
  const unsigned groups = static_cast<unsigned>(ceil_div(p.channels, two ? 2 : 1));
  launch(context, two ? plane_kernel<T, 2> : plane_kernel<T, 1>, dim3(groups, static_cast<unsigned>(p.boxes.images)),
         kThreads, kTapBytes + (two ? 2 : 1) * plane, p);
}

}  // namespace

bool roi_align_by_plane(const RoiAlign& args, const CudaContext& context) {
  if (!fits(args, context)) return false;
  Params p{};
  p.boxes = roi_geometry(args);
  p.maps = args.maps.data;
  p.crops = args.crops.data;
  p.channels = static_cast<int>(args.channels());
  p.taps = make_taps(args, context);
  dispatch_float<false>(args.maps.dtype, [&](auto tag) { launch_planes<typename decltype(tag)::type>(p, context); });
  return true;
}

}  // namespace posekd
