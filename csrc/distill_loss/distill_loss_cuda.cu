// CUDA kernels of distill_loss for any shape, type and mask: a block a row, one launch each way. Most maps are small
// enough for the kernel of distill_loss_row_cuda.cu. See distill_loss.h for the floor.
#include <algorithm>

#include "core/cuda_math.cuh"
#include "distill_loss/distill_loss_device.cuh"

namespace posekd {
namespace {

constexpr int kThreads = 256;

using Params = DistillParams;

// The type is the same for all threads, so the branch costs nothing.
template <int N>
__device__ __forceinline__ void read(const Params::Map& map, int64_t offset, float (&out)[N]) {
  if (map.dtype == DType::float32)
    read_pack<float, N>(map.data, offset, out);
  else if (map.dtype == DType::float16)
    read_pack<half_t, N>(map.data, offset, out);
  else
    read_pack<bfloat16_t, N>(map.data, offset, out);
}

// Labels of N pixels from `i` on: read, or the product of the two profiles.
template <int N>
__device__ __forceinline__ void read_labels(const Params& p, int64_t row, int64_t i, const float* profile,
                                            float (&out)[N]) {
  if (p.target.data) return read(p.target, row * p.pixels + i, out);
  for (int k = 0; k < N; ++k) {
    const int pixel = static_cast<int>(i) + k, y = pixel / p.width;
    out[k] = profile[pixel - y * p.width] * profile[p.width + y];
  }
}

// Running sums of a thread. z and a are relative to the running maxima (online softmax).
struct Sums {
  float teacher, label;  // squared differences
  float max_s, z_s;      // maximum of s/T, sum of exp(s/T - max_s)
  float max_t, z_t;
  float a;  // sum of exp(t/T - max_t) * (t - s)/T
};

__device__ __forceinline__ Sums empty_sums() { return {0.0f, 0.0f, -FLT_MAX, 0.0f, -FLT_MAX, 0.0f, 0.0f}; }

__device__ __forceinline__ Sums merge(const Sums& x, const Sums& y) {
  Sums sum;
  sum.teacher = x.teacher + y.teacher;
  sum.label = x.label + y.label;
  sum.max_s = fmaxf(x.max_s, y.max_s);
  sum.max_t = fmaxf(x.max_t, y.max_t);
  sum.z_s = x.z_s * expf(x.max_s - sum.max_s) + y.z_s * expf(y.max_s - sum.max_s);
  const float fx = expf(x.max_t - sum.max_t), fy = expf(y.max_t - sum.max_t);
  sum.z_t = x.z_t * fx + y.z_t * fy;
  sum.a = x.a * fx + y.a * fy;
  return sum;
}

__device__ __forceinline__ Sums shuffle_down(const Sums& sums, int offset) {
  Sums other;
  other.teacher = __shfl_down_sync(0xffffffffu, sums.teacher, offset);
  other.label = __shfl_down_sync(0xffffffffu, sums.label, offset);
  other.max_s = __shfl_down_sync(0xffffffffu, sums.max_s, offset);
  other.z_s = __shfl_down_sync(0xffffffffu, sums.z_s, offset);
  other.max_t = __shfl_down_sync(0xffffffffu, sums.max_t, offset);
  other.z_t = __shfl_down_sync(0xffffffffu, sums.z_t, offset);
  other.a = __shfl_down_sync(0xffffffffu, sums.a, offset);
  return other;
}

// Adds N pixels: one rescaling of the running sums for all of them.
template <int N>
__device__ __forceinline__ void add_teacher(Sums& sums, const float (&s)[N], const float (&t)[N], const bool (&keep)[N],
                                            float inverse_temperature) {
  float max_s = sums.max_s, max_t = sums.max_t;
  for (int k = 0; k < N; ++k) {
    if (!keep[k]) continue;
    sums.teacher += (s[k] - t[k]) * (s[k] - t[k]);
    max_s = fmaxf(max_s, s[k] * inverse_temperature);
    max_t = fmaxf(max_t, t[k] * inverse_temperature);
  }
  sums.z_s *= expf(sums.max_s - max_s);
  const float rescale = expf(sums.max_t - max_t);
  sums.z_t *= rescale;
  sums.a *= rescale;
  sums.max_s = max_s;
  sums.max_t = max_t;
  for (int k = 0; k < N; ++k) {
    if (!keep[k]) continue;
    const float x = s[k] * inverse_temperature, y = t[k] * inverse_temperature, e = expf(y - max_t);
    sums.z_s += expf(x - max_s);
    sums.z_t += e;
    if (t[k] != -INFINITY) sums.a += e * (y - x);  // 0 log 0 = 0
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, profile);
  __shared__ Sums warp_sums[kWarp];
  __shared__ RowTerms scratch[kWarp];
  const int64_t row = blockIdx.x;
  const RowFacts facts = open_row(p, row, profile);
  __syncthreads();
  const uint8_t* mask = p.mask ? p.mask + row / p.joints * p.pixels : nullptr;
  Sums sums = empty_sums();
  if (facts.use_teacher || facts.use_labels) {
    for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < p.pixels; i += static_cast<int64_t>(blockDim.x) * N) {
      float s[N], other[N];
      bool keep[N];
      for (int k = 0; k < N; ++k) keep[k] = !mask || mask[i + k] != 0;
      read(p.student, row * p.pixels + i, s);
      if (facts.use_labels) {
        read_labels(p, row, i, profile, other);
        for (int k = 0; k < N; ++k)
          if (keep[k]) sums.label += (s[k] - other[k]) * (s[k] - other[k]);
      }
      if (facts.use_teacher) {
        read(p.teacher, row * p.pixels + i, other);
        add_teacher(sums, s, other, keep, p.inverse_temperature);
      }
    }
  }
  sums = block_reduce(sums, warp_sums, shuffle_down, merge);
  if (threadIdx.x == 0) {
    float* stats = p.stats + 5 * row;
    const float tw = facts.teacher_weight, lw = facts.label_weight;
    const float lse_s = sums.max_s + logf(sums.z_s), lse_t = sums.max_t + logf(sums.z_t);
    // A wholly masked row has no distribution: its divergence is 0.
    const bool empty = sums.max_s == -FLT_MAX && sums.max_t == -FLT_MAX && sums.z_s == 0.0f && sums.z_t == 0.0f;
    stats[0] = facts.use_teacher ? tw * tw * sums.teacher : 0.0f;
    stats[1] = facts.use_teacher && !empty ? tw * (sums.a / sums.z_t - lse_t + lse_s) : 0.0f;
    stats[2] = facts.use_labels ? lw * lw * sums.label : 0.0f;
    stats[3] = lse_s;
    stats[4] = lse_t;
  }
  if (last_block(p.counter)) finish_loss(p, scratch);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) backward_kernel(Params p) {
  POSEKD_DYNAMIC_SHARED(float, profile);
  const int64_t row = blockIdx.x;
  const RowFacts facts = open_row(p, row, profile);
  __syncthreads();
  const uint8_t* mask = p.mask ? p.mask + row / p.joints * p.pixels : nullptr;
  const float upstream = read_upstream(p);
  const Slopes slopes = row_slopes(p, facts, kScaledBeforeRounding<T> ? upstream : 1.0);
  const float lse_s = p.stats[5 * row + 3], lse_t = p.stats[5 * row + 4];
  auto* gradient = static_cast<T*>(p.gradient) + row * p.pixels;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < p.pixels; i += static_cast<int64_t>(blockDim.x) * N) {
    float s[N], other[N], value[N];
    for (int k = 0; k < N; ++k) value[k] = 0.0f;
    if (facts.use_teacher || facts.use_labels) read(p.student, row * p.pixels + i, s);
    if (facts.use_teacher) {
      read(p.teacher, row * p.pixels + i, other);
      for (int k = 0; k < N; ++k)
        value[k] = slopes.teacher * (s[k] - other[k]) + slopes.kl * (expf(s[k] * p.inverse_temperature - lse_s) -
                                                                     expf(other[k] * p.inverse_temperature - lse_t));
    }
    if (facts.use_labels) {
      read_labels(p, row, i, profile, other);
      for (int k = 0; k < N; ++k) value[k] += slopes.label * (s[k] - other[k]);
    }
    Pack<T, N> out;
    for (int k = 0; k < N; ++k) out.v[k] = scaled<T>(!mask || mask[i + k] != 0 ? value[k] : 0.0f, upstream);
    *reinterpret_cast<Pack<T, N>*>(gradient + i) = out;
  }
}

size_t profile_bytes(const Params& p) {
  return p.keypoints ? sizeof(float) * static_cast<size_t>(p.width + p.height) : 0;
}

// Four neighbours at once need rows and base addresses aligned to four elements.
bool aligned(const DistillLoss& args) {
  const auto fits = [](const TensorView& view) {
    return reinterpret_cast<uintptr_t>(view.data) % (4 * static_cast<uintptr_t>(item_size(view.dtype))) == 0;
  };
  return args.pixels() % 4 == 0 && fits(args.student) && fits(args.teacher) && fits(args.target) && fits(args.gradient);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T* gradient, int64_t packs, int64_t count, const float* upstream) {
  const float factor = *upstream;
  if (factor == 1.0f) return;
  constexpr int kSize = kVector<T>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < packs; i += step) {
    uint4* const at = reinterpret_cast<uint4*>(gradient) + i;
    float values[kSize];
    unpack<T>(*at, values);
    for (int k = 0; k < kSize; ++k) values[k] *= factor;
    *at = pack<T>(values);
  }
  for (int64_t i = packs * kSize + first; i < count; i += step)
    gradient[i] = from_float<T>(to_float(gradient[i]) * factor);
}

void launch_gradient(const DistillLoss& args, const CudaContext& context) {
  const Params p = distill_params(args);
  const dim3 grid(static_cast<unsigned>(args.rows()));
  dispatch_float<false>(args.gradient.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(context, aligned(args) ? backward_kernel<T, 4> : backward_kernel<T, 1>, grid, kThreads, profile_bytes(p), p);
  });
}

}  // namespace

DistillParams distill_params(const DistillLoss& args) {
  const auto map = [](const TensorView& view) { return DistillParams::Map{view.data, view.dtype}; };
  DistillParams p{};
  p.student = map(args.student);
  p.teacher = map(args.teacher);
  p.target = map(args.target);
  p.keypoints = args.keypoints.as<float>();
  p.weight = args.weight.as<float>();
  p.teacher_weight = args.teacher_weight.as<float>();
  p.mask = args.mask.as<uint8_t>();
  p.stats = args.stats.as<float>();
  p.loss = args.loss.as<float>();
  p.terms = args.terms.as<float>();
  p.upstream = args.upstream.as<float>();
  p.gradient = args.gradient.data;
  p.counter = args.counter.as<unsigned>();
  p.pixels = args.pixels();
  p.rows = static_cast<int>(args.rows());
  p.joints = static_cast<int>(args.student.shape[1]);
  p.height = static_cast<int>(args.student.shape[2]);
  p.width = static_cast<int>(args.student.shape[3]);
  p.kind = args.kind;
  p.sigma = static_cast<float>(args.sigma);
  p.inverse_width = 1.0f / static_cast<float>(p.width);
  p.inverse_temperature = static_cast<float>(1.0 / args.temperature);
  p.alpha = args.alpha;
  p.beta = args.beta;
  p.label_factor = args.label_factor();
  p.mse_scale = args.mse_scale();
  p.kl_scale = args.kl_scale();
  p.kl_slope = args.beta * args.kl_scale() / args.temperature;
  return p;
}

void distill_loss_forward_cuda(const DistillLoss& args, const CudaContext& context) {
  DistillLoss wanted = args;
  if (!distill_loss_keeps_gradient_cuda(args, context)) wanted.gradient = {};
  if (distill_loss_by_row(wanted, context)) return;
  const Params p = distill_params(args);
  const dim3 grid(static_cast<unsigned>(args.rows()));
  launch(context, aligned(args) ? forward_kernel<4> : forward_kernel<1>, grid, kThreads, profile_bytes(p), p);
}

void distill_loss_backward_cuda(const DistillLoss& args, const CudaContext& context) {
  DistillLoss without_loss = args;
  without_loss.stats = {};
  if (!distill_loss_by_row(without_loss, context)) launch_gradient(args, context);
}

// Leaves a gradient as it is where the upstream gradient is 1, which only the device knows.
void distill_loss_scale_cuda(const DistillLoss& args, const CudaContext& context) {
  const int64_t count = args.gradient.numel();
  dispatch_float<false>(args.gradient.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool whole = reinterpret_cast<uintptr_t>(args.gradient.data) % 16 == 0;
    const int64_t packs = whole ? count / kVector<T> : 0;
    const int64_t blocks =
        std::min<int64_t>(ceil_div<int64_t>(std::max(packs, count - packs * kVector<T>), kThreads), 1056);
    launch(context, scale_kernel<T>, dim3(static_cast<unsigned>(blocks)), kThreads, 0, args.gradient.as<T>(), packs,
           count, args.upstream.as<float>());
  });
}

}  // namespace posekd
