// Python bindings: they turn arguments into an op's struct and choose the entry point by device. Nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "center_focal_loss/center_focal_loss.h"
#include "center_pool/center_pool.h"
#include "core/cpu_dispatch.h"
#include "core/dlpack_caster.h"
#include "core/large_outputs.h"
#include "core/parallel.h"
#include "corner_pool/corner_pool.h"
#include "crop_warp/crop_warp.h"
#include "decode_boxes/decode_boxes.h"
#include "decode_heatmaps/decode_heatmaps.h"
#include "distill_loss/distill_loss.h"
#include "group_keypoints/group_keypoints.h"
#include "mimic_loss/mimic_loss.h"
#include "oks/oks.h"
#include "render_heatmaps/render_heatmaps.h"
#include "roi_align/roi_align.h"
#include "simulated_heatmap_loss/simulated_heatmap_loss.h"
#include "tag_loss/tag_loss.h"
#if defined(POSEKD_EMU)
#include "emu/cuda_emu.h"
#include "emu/selftest.h"
#endif

namespace py = pybind11;
using posekd::CudaContext;
using posekd::TensorView;

namespace {

#if defined(POSEKD_WITH_CUDA)
#define POSEKD_CUDA(entry) (entry)
#else
#define POSEKD_CUDA(entry) (nullptr)
#endif
#if defined(POSEKD_EMU)
constexpr bool kEmulated = true;
#define POSEKD_CPU(entry) (nullptr)
#else
constexpr bool kEmulated = false;
#define POSEKD_CPU(entry) (entry)
#endif
// Both entry points of a function, those that this module has.
#define POSEKD_ENTRIES(function) POSEKD_CPU(posekd::function##_cpu), POSEKD_CUDA(posekd::function##_cuda)

template <class Args>
struct Entry {
  using Cpu = void (*)(const Args&, int threads);
  using Cuda = void (*)(const Args&, const CudaContext&);
};

// Calls the entry point for the device of `on`, without the GIL. In emulation every tensor is on the "device".
template <class Args>
void run(const TensorView& on, const Args& args, int threads, typename Entry<Args>::Cpu cpu,
         typename Entry<Args>::Cuda cuda) {
  const bool on_device = kEmulated || on.device == posekd::Device::cuda;
#if !defined(POSEKD_EMU)  // there the GIL stays held: the emulated device has one scheduler
  const py::gil_scoped_release unlocked;
#endif
  if (!on_device) {
    if (!cpu) throw std::runtime_error("posekd core: this function is for CUDA tensors");
    return cpu(args, threads);
  }
  if (!cuda) throw std::runtime_error("posekd core: built without CUDA kernels");
  cuda(args, CudaContext{on.device_index, on.stream});
}

// Whether the forward pass fills `args.gradient`: always on the CPU.
bool keeps_gradient(const posekd::DistillLoss& args) {
#if defined(POSEKD_WITH_CUDA)
  const TensorView& on = args.student;
  if (kEmulated || on.device == posekd::Device::cuda)
    return posekd::distill_loss_keeps_gradient_cuda(args, CudaContext{on.device_index, on.stream});
#endif
  return args.gradient.present;
}

void bind_distill_loss(py::module_& module) {
  module.def(  // returns whether `gradient` was filled
      "distill_loss_forward",
      [](const TensorView& student, const TensorView& teacher, const TensorView& target, const TensorView& keypoints,
         const TensorView& weight, const TensorView& teacher_weight, const TensorView& mask, double alpha, double beta,
         double temperature, double sigma, int kind, const TensorView& loss, const TensorView& terms,
         const TensorView& stats, const TensorView& gradient, const TensorView& counter, int threads) {
        posekd::DistillLoss args{student, teacher, target, keypoints, weight, teacher_weight, mask};
        args.set(alpha, beta, temperature, sigma, kind);
        args.loss = loss, args.terms = terms, args.stats = stats, args.gradient = gradient;
        args.counter = counter;
        run(student, args, threads, POSEKD_ENTRIES(distill_loss_forward));
        return keeps_gradient(args);
      });
  module.def("distill_loss_backward",
             [](const TensorView& student, const TensorView& teacher, const TensorView& target,
                const TensorView& keypoints, const TensorView& weight, const TensorView& teacher_weight,
                const TensorView& mask, double alpha, double beta, double temperature, double sigma, int kind,
                const TensorView& upstream, const TensorView& stats, const TensorView& gradient, int threads) {
               posekd::DistillLoss args{student, teacher, target, keypoints, weight, teacher_weight, mask};
               args.set(alpha, beta, temperature, sigma, kind);
               args.upstream = upstream, args.stats = stats, args.gradient = gradient;
               run(student, args, threads, POSEKD_ENTRIES(distill_loss_backward));
             });
  module.def("distill_loss_scale", [](const TensorView& gradient, const TensorView& upstream) {  // CUDA only
    posekd::DistillLoss args{};
    args.gradient = gradient, args.upstream = upstream;
    run(gradient, args, 1, nullptr, POSEKD_CUDA(posekd::distill_loss_scale_cuda));
  });
}

void bind_corner_pool(py::module_& module) {
  module.def("corner_pool_forward", [](const TensorView& x, const TensorView& other, const TensorView& y,
                                       const TensorView& heads, int direction, bool last_wins, int threads) {
    const posekd::CornerPool args{x, other, y, heads, static_cast<posekd::CornerDirection>(direction), last_wins};
    run(x, args, threads, POSEKD_ENTRIES(corner_pool_forward));
  });
  module.def("corner_pool_sum_forward",
             [](const TensorView& vertical, const TensorView& horizontal, const TensorView& y,
                const TensorView& vertical_heads, const TensorView& horizontal_heads, int vertical_direction,
                int horizontal_direction, bool last_wins, int threads) {
               posekd::CornerPool args{vertical, {}, y, vertical_heads};
               args.direction = static_cast<posekd::CornerDirection>(vertical_direction);
               args.last_wins = last_wins;
               args.second = horizontal;
               args.second_heads = horizontal_heads;
               args.second_direction = static_cast<posekd::CornerDirection>(horizontal_direction);
               run(vertical, args, threads, POSEKD_ENTRIES(corner_pool_forward));
             });
  module.def("corner_pool_backward",
             [](const TensorView& dy, const TensorView& heads, const TensorView& dx, int direction, int threads) {
               const posekd::CornerPool args{dy, {}, dx, heads, static_cast<posekd::CornerDirection>(direction)};
               run(dy, args, threads, POSEKD_ENTRIES(corner_pool_backward));
             });
}

void bind_center_pool(py::module_& module) {
  module.def("center_pool_forward", [](const TensorView& vertical, const TensorView& horizontal, const TensorView& y,
                                       const TensorView& columns, const TensorView& rows, int threads) {
    run(y, posekd::CenterPool{vertical, horizontal, y, columns, rows}, threads, POSEKD_ENTRIES(center_pool_forward));
  });
  module.def("center_pool_backward", [](const TensorView& dy, const TensorView& columns, const TensorView& rows,
                                        const TensorView& vertical, const TensorView& horizontal, int threads) {
    run(dy, posekd::CenterPoolGradient{dy, columns, rows, vertical, horizontal}, threads,
        POSEKD_ENTRIES(center_pool_backward));
  });
}

void bind_center_focal_loss(py::module_& module) {
  module.def("center_focal_loss_forward",
             [](const TensorView& logits, const TensorView& boxes, const TensorView& counts, const TensorView& mask,
                bool divided, const TensorView& loss, const TensorView& points, const TensorView& partial,
                const TensorView& counter, int threads) {
               posekd::CenterFocalLoss args{logits, boxes, counts, mask, loss, points, partial};
               args.counter = counter, args.divided = divided;
               run(logits, args, threads, POSEKD_ENTRIES(center_focal_loss_forward));
             });
  module.def(
      "center_focal_loss_backward",
      [](const TensorView& logits, const TensorView& boxes, const TensorView& counts, const TensorView& mask,
         bool divided, const TensorView& upstream, const TensorView& points, const TensorView& gradient, int threads) {
        posekd::CenterFocalLoss args{logits, boxes, counts, mask, upstream, points};
        args.gradient = gradient, args.divided = divided;
        run(logits, args, threads, POSEKD_ENTRIES(center_focal_loss_backward));
      });
}

void bind_decode_boxes(py::module_& module) {
  module.def("pair_corners", [](const TensorView& corners, const TensorView& centers, const TensorView& areas_scale,
                                const TensorView& boxes, const TensorView& scores, const TensorView& counts,
                                const TensorView& workspace, int mirrored, double sigma, int threads) {
    const posekd::PairCorners args{
        corners, centers, areas_scale, boxes, scores, counts, workspace, mirrored, static_cast<float>(sigma)};
    run(corners, args, threads, POSEKD_ENTRIES(pair_corners));
  });
}

void bind_tag_loss(py::module_& module) {
  module.def("tag_loss_forward",
             [](const TensorView& tags, const TensorView& keypoints, const TensorView& pull, const TensorView& push,
                const TensorView& pull_slope, const TensorView& push_slope, bool exponential, int threads) {
               run(tags, posekd::TagLoss{tags, keypoints, pull, push, pull_slope, push_slope, exponential}, threads,
                   POSEKD_ENTRIES(tag_loss_forward));
             });
  module.def("tag_loss_backward", [](const TensorView& keypoints, const TensorView& pull_slope,
                                     const TensorView& push_slope, const TensorView& pull_upstream,
                                     const TensorView& push_upstream, const TensorView& gradient, int threads) {
    run(gradient, posekd::TagLossGradient{keypoints, pull_slope, push_slope, pull_upstream, push_upstream, gradient},
        threads, POSEKD_ENTRIES(tag_loss_backward));
  });
}

void bind_simulated_heatmap_loss(py::module_& module) {
  module.def("simulated_heatmap_loss_forward",
             [](const TensorView& coords, const TensorView& sigmas, const TensorView& teacher, const TensorView& weight,
                const TensorView& stats, const TensorView& loss, const TensorView& counter, int threads) {
               run(teacher, posekd::SimulatedHeatmapLoss{coords, sigmas, teacher, weight, stats, loss, counter},
                   threads, POSEKD_ENTRIES(simulated_heatmap_loss_forward));
             });
  module.def("simulated_heatmap_loss_backward",
             [](const TensorView& upstream, const TensorView& stats, const TensorView& coords_gradient,
                const TensorView& sigmas_gradient, int threads) {
               run(stats, posekd::SimulatedHeatmapLossGradient{upstream, stats, coords_gradient, sigmas_gradient},
                   threads, POSEKD_ENTRIES(simulated_heatmap_loss_backward));
             });
}

void bind_render_heatmaps(py::module_& module) {
  module.def("render_heatmaps", [](const TensorView& keypoints, const TensorView& heatmaps, const TensorView& weight,
                                   double sigma, int kind, int threads) {
    const posekd::RenderHeatmaps args{keypoints, heatmaps, weight, sigma, static_cast<posekd::GaussianKind>(kind)};
    run(heatmaps, args, threads, POSEKD_ENTRIES(render_heatmaps));
  });
}

void bind_decode_heatmaps(py::module_& module) {
  module.def("decode_heatmaps", [](const TensorView& heatmaps, const TensorView& matrices, const TensorView& keypoints,
                                   int method, int blur, int threads) {
    const posekd::DecodeHeatmaps args{heatmaps, matrices, keypoints, static_cast<posekd::DecodeMethod>(method), blur};
    run(heatmaps, args, threads, POSEKD_ENTRIES(decode_heatmaps));
  });
}

void bind_crop_warp(py::module_& module) {
  module.def("crop_warp", [](const TensorView& images, const TensorView& offsets, const TensorView& shapes,
                             const TensorView& matrices, const TensorView& image_index, const TensorView& color,
                             const TensorView& out, const std::vector<double>& scale, const std::vector<double>& shift,
                             bool channels_last, bool fresh, int threads) {
    posekd::CropWarp args{images, offsets, shapes, matrices, image_index, color, out};
    args.set_normalisation(scale.data(), shift.data(), scale.size());
    args.bytes = offsets.present, args.channels_last = channels_last, args.fresh = fresh;
    run(out, args, threads, POSEKD_ENTRIES(crop_warp));
  });
}

void bind_roi_align(py::module_& module) {
  const auto define = [&](const char* name, Entry<posekd::RoiAlign>::Cpu cpu, Entry<posekd::RoiAlign>::Cuda cuda) {
    module.def(
        name,
        [cpu, cuda](const TensorView& maps, const TensorView& boxes, const TensorView& crops, double spatial_scale,
                    int sampling_ratio, bool aligned, int threads, const TensorView& scratch,
                    const TensorView& turned) {
          const posekd::RoiAlign args{maps,    boxes,   crops,   spatial_scale, sampling_ratio,
                                      aligned, nullptr, scratch, turned};
          run(maps, args, threads, cpu, cuda);
        },
        py::arg("maps"), py::arg("boxes"), py::arg("crops"), py::arg("spatial_scale"), py::arg("sampling_ratio"),
        py::arg("aligned"), py::arg("threads"), py::arg("scratch") = py::none(), py::arg("turned") = py::none());
  };
  define("roi_align_forward", POSEKD_ENTRIES(roi_align_forward));
  define("roi_align_backward", POSEKD_ENTRIES(roi_align_backward));
}

void bind_mimic_loss(py::module_& module) {
  module.def("mimic_loss_forward",
             [](const TensorView& maps, const TensorView& boxes, const TensorView& targets, const TensorView& weight,
                double spatial_scale, int sampling_ratio, bool aligned, const TensorView& stats, const TensorView& loss,
                const TensorView& counter, int threads) {
               posekd::MimicLoss args{maps, boxes, targets, weight, spatial_scale, sampling_ratio, aligned};
               args.stats = stats, args.loss = loss, args.counter = counter;
               run(maps, args, threads, POSEKD_ENTRIES(mimic_loss_forward));
             });
  module.def("mimic_loss_backward",
             [](const TensorView& maps, const TensorView& boxes, const TensorView& targets, const TensorView& weight,
                double spatial_scale, int sampling_ratio, bool aligned, const TensorView& upstream,
                const TensorView& gradient, const TensorView& target_gradient, int threads) {
               posekd::MimicLoss args{maps, boxes, targets, weight, spatial_scale, sampling_ratio, aligned};
               args.upstream = upstream, args.gradient = gradient, args.target_gradient = target_gradient;
               run(maps, args, threads, POSEKD_ENTRIES(mimic_loss_backward));
             });
}

void bind_group_keypoints(py::module_& module) {
  module.def("top_k_peaks", [](const TensorView& heatmaps, const TensorView& tags, const TensorView& peaks,
                               const TensorView& workspace, float threshold, int nms_kernel, int threads) {
    const posekd::TopKPeaks args{{heatmaps, tags}, peaks, workspace, threshold, nms_kernel};
    run(heatmaps, args, threads, POSEKD_ENTRIES(top_k_peaks));
  });
  module.def("match_workspace_bytes", &posekd::match_workspace_bytes);
  module.def("match_by_tag",
             [](const TensorView& peaks, const TensorView& keypoints, const TensorView& scores,
                const TensorView& counts, const TensorView& workspace, double detection_threshold, double tag_threshold,
                const std::vector<int>& order, bool ignore_too_many, bool use_detection_score, int threads) {
               posekd::MatchByTag args{peaks, keypoints, scores, counts, workspace, detection_threshold, tag_threshold};
               args.set_order(order.data(), order.size());
               args.ignore_too_many = ignore_too_many, args.use_detection_score = use_detection_score;
               run(peaks, args, threads, POSEKD_ENTRIES(match_by_tag));
             });
  module.def("refine_people", [](const TensorView& heatmaps, const TensorView& tags, const TensorView& keypoints,
                                 const TensorView& refined, const TensorView& counts, const TensorView& means,
                                 const TensorView& bounds, bool adjust, bool fill, int threads) {
    const posekd::RefinePeople args{{heatmaps, tags}, keypoints, refined, counts, means, bounds, adjust, fill};
    run(heatmaps, args, threads, POSEKD_ENTRIES(refine_people));
  });
}

// For CPU tensors only: on other devices the plain PyTorch definition runs.
void bind_oks(py::module_& module) {
  module.def("oks", [](const TensorView& a, const TensorView& b, const TensorView& areas_a, const TensorView& areas_b,
                       const std::vector<double>& sigmas, const TensorView& similarity, int threads) {
    const py::gil_scoped_release unlocked;
    posekd::oks({a, b, areas_a, areas_b, sigmas.data(), similarity}, threads);
  });
  module.def("oks_nms",
             [](const TensorView& keypoints, const TensorView& scores, const TensorView& areas,
                const std::vector<double>& sigmas, double threshold, bool soft, const TensorView& kept,
                const TensorView& count, const TensorView& bits, const TensorView& order, const TensorView& counter) {
               const posekd::OksNms args{keypoints, scores, areas, sigmas.data(), threshold, soft,
                                         kept,      count,  bits,  order,         counter};
               run(keypoints, args, 1, POSEKD_ENTRIES(oks_nms));
             });
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#if defined(POSEKD_CUDA_VERSION)
  info["cuda"] = POSEKD_CUDA_VERSION;
  info["cuda_architectures"] = POSEKD_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  info["vector_levels"] = posekd::compiled_levels();
  info["vector_level"] = posekd::vector_level_name();
  info["parallel"] = posekd::parallel_backend();
  return info;
}

// What the core sees of a tensor: for the tests of the two DLPack doors.
py::dict describe(const TensorView& view) {
  py::dict facts;
  py::list shape, stride;
  for (int i = 0; i < view.ndim; ++i) shape.append(view.shape[i]), stride.append(view.stride[i]);
  facts["present"] = view.present;
  facts["address"] = reinterpret_cast<uintptr_t>(view.data);
  facts["shape"] = shape;
  facts["stride"] = stride;
  facts["dtype"] = posekd::name(view.dtype);
  facts["device"] = view.device == posekd::Device::cuda ? "cuda" : "cpu";
  return facts;
}

}  // namespace

#if defined(POSEKD_EMU)
PYBIND11_MODULE(_posekd_emu, module) {
  module.doc() = "posekd's CUDA kernels in emulation on the CPU, for tests.";
  py::enum_<posekd::emu::Order>(module, "Order")
      .value("forward", posekd::emu::Order::forward)
      .value("reverse", posekd::emu::Order::reverse)
      .value("shuffled", posekd::emu::Order::shuffled);
  module.def("set_order", &posekd::emu::set_order, py::arg("order"), py::arg("seed") = 0);
  module.def("set_grid_rows", &posekd::emu::set_grid_rows, py::arg("largest") = 65535);
  module.def("selftest_sum", &posekd::selftest_sum);
  module.def("selftest_divergent", &posekd::selftest_divergent);
  module.def("selftest_cluster", &posekd::selftest_cluster);
  module.def("selftest_copy", &posekd::selftest_copy);
  module.def("selftest_overrun", &posekd::selftest_overrun);
#else
PYBIND11_MODULE(_C, module) {
  module.doc() = "posekd's compiled core. Not public: call posekd.ops.";
#endif
  module.def("build_info", &build_info);
  module.def("describe", &describe);
  module.def("set_vector_level", &posekd::set_vector_level);
  module.def("set_stream_from", &posekd::set_stream_from);
  bind_distill_loss(module);
  bind_corner_pool(module);
  bind_center_pool(module);
  bind_center_focal_loss(module);
  bind_decode_boxes(module);
  bind_tag_loss(module);
  bind_simulated_heatmap_loss(module);
  bind_render_heatmaps(module);
  bind_decode_heatmaps(module);
  bind_crop_warp(module);
  bind_group_keypoints(module);
  bind_roi_align(module);
  bind_mimic_loss(module);
  bind_oks(module);
}
