#include "native_experts.h"

#include <algorithm>
#include <numeric>

#include "expert_rows.h"
#include "ferry/core/error.h"

namespace ferry::python {

namespace {

constexpr std::size_t kAlign = 64;  // of a packed matrix

/// Source rows [n, k] into every `step`-th panel from `out` on.
void pack_rows(const std::byte* source,
               DType dtype,
               const PackedMatrix& matrix,
               std::int64_t rows,
               std::int64_t step,
               std::byte* out) {
  PackArgs args{.type = matrix.type,
                .source = source,
                .source_type = dtype,
                .k = matrix.k,
                .n = rows,
                .out = out,
                .panel_step = step};
  if (!is_quantized(matrix.type)) {
    pack_matrix(args);
    return;
  }
  const QuantizedMatrix quantized = quantize_matrix(matrix.type, source, dtype, rows, matrix.k);
  args.source = quantized.codes.data();
  args.scales = quantized.scales.data();
  args.scale_rows = rows_per_scale(matrix.type);
  pack_matrix(args);
}

Gating gating_of(Settings& settings) {
  const auto name = settings.get<std::string>("activation", "silu");
  if (name != "silu" && name != "clamped") {
    fail<ConfigError>("activation is '{}'; known are silu and clamped", name);
  }
  return {.kind = name == "silu" ? Gating::Kind::silu : Gating::Kind::clamped,
          .alpha = static_cast<float>(settings.get("alpha", 1.702)),
          .limit = static_cast<float>(settings.get("limit", 7.0))};
}

}  // namespace

NativeExperts::NativeExperts(nb::handle w13, nb::handle w2, const nb::dict& options)
    : NativeExperts(Array(w13, "w13"), Array(w2, "w2"), Settings("Experts", options)) {}

NativeExperts::NativeExperts(const Array& w13, const Array& w2, Settings settings) {
  w13.check_packed({-1, -1, -1});
  w2.check_packed({w13.shape(0), w13.shape(2), -1});
  const std::int64_t inter = w2.shape(2);
  w13.check_packed({w2.shape(0), 2 * inter, w2.shape(1)});
  if (w13.dtype() == DType::f16 || w13.dtype() != w2.dtype()) {
    fail<ConfigError>("w13 is {} and w2 is {}: both must be float32, or both bfloat16",
                      element_name(w13.type()),
                      element_name(w2.type()));
  }
  const auto name = settings.find<std::string>("weights");
  const WeightType type = name ? parse_weight_type(*name, "weights") : weight_type(w13.dtype());
  options_ = {.hidden = static_cast<int>(w2.shape(1)),
              .inter = static_cast<int>(inter),
              .gating = gating_of(settings),
              .dtype = activation_type(type),
              .max_rows = settings.get<std::int64_t>("max_rows", 1024),
              .row_weights = settings.get("row_weights", false)};
  const int threads = settings.get("threads", 1);
  const nb::object comm = settings.object("comm");
  const nb::object b13 = settings.object("b13");
  const nb::object b2 = settings.object("b2");
  settings.finish();
  if (options_.hidden < 1 || inter < 1 || options_.max_rows < 1 || threads < 1) {
    fail<ConfigError>(
        "experts of hidden {}, inter {}, max_rows {}, {} threads: all must be at least 1",
        options_.hidden,
        inter,
        options_.max_rows,
        threads);
  }
  if (b13.is_none() != b2.is_none()) fail<ConfigError>("b13 and b2 come together");
  if (comm.is_none()) {
    pool_ = std::make_unique<ThreadPool>(threads);
  } else {
    comm_ = nb::cast<Comm&>(comm).state();
  }
  weights_.resize(static_cast<std::size_t>(w13.shape(0)));
  {
    const nb::gil_scoped_release released;
    pack(w13, w2, type);
  }
  if (!b13.is_none()) take_biases(Array(b13, "b13"), Array(b2, "b2"));
  experts_ = std::make_unique<Experts>(options_, comm_ ? comm_->pool() : *pool_);
}

void NativeExperts::pack(const Array& w13, const Array& w2, WeightType type) {
  const std::int64_t hidden = options_.hidden;
  const std::int64_t inter = options_.inter;
  const PackedMatrix up{.type = type, .k = hidden, .n = 2 * inter};
  const PackedMatrix down{.type = type, .k = inter, .n = hidden};
  const auto aligned = [](std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; };
  const std::size_t up_bytes =
      aligned(static_cast<std::size_t>(up.gated_panels()) * up.panel_bytes());
  const std::size_t down_bytes =
      aligned(static_cast<std::size_t>(down.panels()) * down.panel_bytes());
  packed_ = Buffer((up_bytes + down_bytes) * weights_.size());
  const DType dtype = w13.dtype();
  const auto element = static_cast<std::int64_t>(dtype_bytes(dtype));
  ThreadPool& pool = comm_ ? comm_->pool() : *pool_;
  pool.parallel_for(slots(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t l = begin; l < end; ++l) {
      GatedFfnWeights& slot = weights_[static_cast<std::size_t>(l)];
      std::byte* to = packed_.data() + static_cast<std::size_t>(l) * (up_bytes + down_bytes);
      const std::byte* gate_rows = w13.data() + l * 2 * inter * hidden * element;
      const std::byte* up_rows = gate_rows + inter * hidden * element;
      const std::byte* down_rows = w2.data() + l * inter * hidden * element;
      pack_rows(gate_rows, dtype, up, inter, 2, to);
      pack_rows(up_rows, dtype, up, inter, 2, to + up.panel_bytes());
      pack_rows(down_rows, dtype, down, hidden, 1, to + up_bytes);
      slot.gate_up = up;
      slot.gate_up.data = to;
      slot.down = down;
      slot.down.data = to + up_bytes;
    }
  });
}

/// b13 [L, 2 * I] as gate and up lie in panels, b2 [L, H].
void NativeExperts::take_biases(const Array& b13, const Array& b2) {
  b13.check_packed({slots(), 2 * std::int64_t{options_.inter}});
  b2.check_packed({slots(), options_.hidden});
  if (b13.type() != Element::f32 || b2.type() != Element::f32) {
    fail<ConfigError>("b13 is {} and b2 is {}; biases are float32",
                      element_name(b13.type()),
                      element_name(b2.type()));
  }
  const auto inter = static_cast<std::size_t>(options_.inter);
  const auto hidden = static_cast<std::size_t>(options_.hidden);
  const std::size_t padded =
      weights_.empty() ? 0
                       : static_cast<std::size_t>(weights_.front().gate_up.gated_panels()) *
                             std::size_t{kPanelColumns};
  biases_.assign(weights_.size() * (padded + hidden), 0.0F);
  for (std::size_t l = 0; l < weights_.size(); ++l) {
    float* to = biases_.data() + l * (padded + hidden);
    const float* from = reinterpret_cast<const float*>(b13.data()) + l * 2 * inter;
    for (std::size_t c = 0; c < inter; ++c) {
      const std::size_t place = c / kPanelColumns * 2 * kPanelColumns + c % kPanelColumns;
      to[place] = from[c];
      to[place + kPanelColumns] = from[inter + c];
    }
    std::copy_n(reinterpret_cast<const float*>(b2.data()) + l * hidden, hidden, to + padded);
    weights_[l].biased = true;
    weights_[l].gate_up_bias = to;
    weights_[l].down_bias = to + padded;
  }
}

void NativeExperts::run(const ExpertRows& rows) {
  if (rows.counts.size() != weights_.size()) {
    fail<ConfigError>(
        "rows of {} slots came to experts of {}", rows.counts.size(), weights_.size());
  }
  if (rows.hidden != options_.hidden || rows.in_type != wire_type(options_.dtype)) {
    fail<ConfigError>(
        "{} rows of {} came to experts that read {} rows of {}: expert_dtype and hidden of "
        "the all-to-all must be theirs",
        wire_type_name(rows.in_type),
        rows.hidden,
        dtype_name(options_.dtype),
        options_.hidden);
  }
  const FlushDenormals flush;
  experts_->run(rows, weights_);
}

nb::object NativeExperts::apply(const Array& x,
                                const Array& counts,
                                nb::handle out,
                                Framework framework) {
  x.check_rows(-1, options_.hidden);
  counts.check_packed({slots()});
  if (counts.type() != Element::i32) fail<ConfigError>("counts are int32");
  if (x.dtype() != options_.dtype || options_.row_weights) {
    fail<ConfigError>("x is {}; these experts read {}{}",
                      element_name(x.type()),
                      dtype_name(options_.dtype),
                      options_.row_weights ? " with row weights, which only exchanges bring" : "");
  }
  const std::span<const std::int32_t> rows_of_slot(
      reinterpret_cast<const std::int32_t*>(counts.data()), weights_.size());
  std::vector<std::int64_t> offsets(weights_.size());
  std::exclusive_scan(rows_of_slot.begin(), rows_of_slot.end(), offsets.begin(), std::int64_t{0});
  for (std::size_t l = 0; l < rows_of_slot.size(); ++l) {
    if (rows_of_slot[l] < 0) fail<ConfigError>("counts[{}] is {}", l, rows_of_slot[l]);
  }
  const std::int64_t sum =
      std::accumulate(rows_of_slot.begin(), rows_of_slot.end(), std::int64_t{0});
  if (sum != x.shape(0)) fail<ConfigError>("counts are for {} rows, x has {}", sum, x.shape(0));
  const nb::object made = out.is_none() ? empty_array({static_cast<std::size_t>(x.shape(0)),
                                                       static_cast<std::size_t>(options_.hidden)},
                                                      x.type(),
                                                      framework)
                                        : nb::borrow(out);
  const Array target(made, "out", true);
  target.check_rows(x.shape(0), options_.hidden);
  if (target.dtype() == DType::f16) fail<ConfigError>("out must be float32 or bfloat16");
  ExpertRows rows{.format = DispatchFormat::ragged, .counts = rows_of_slot, .offsets = offsets};
  rows.in = x.rows();
  rows.in_type = wire_type(options_.dtype);
  rows.out = target.mutable_rows();
  rows.out_type = target.dtype();
  rows.hidden = options_.hidden;
  const nb::gil_scoped_release released;
  run(rows);
  return made;
}

void bind_native_experts(nb::module_& module) {
  nb::class_<NativeExperts>(module, "NativeExperts")
      .def(nb::init<nb::handle, nb::handle, const nb::dict&>(),
           nb::arg("w13"),
           nb::arg("w2"),
           nb::arg("options"))
      .def_prop_ro("num_slots", &NativeExperts::slots, "L, experts that these are.")
      .def_prop_ro("hidden", &NativeExperts::hidden, "H, columns of their rows.")
      .def_prop_ro("intermediate", &NativeExperts::inter, "I, columns between the projections.")
      .def_prop_ro("weight_bytes", &NativeExperts::weight_bytes, "Memory of the packed weights.")
      .def_prop_ro(
          "dtype",
          [](const NativeExperts& e) { return std::string(dtype_name(e.dtype())); },
          "Of the rows that they read: 'f32' or 'bf16'. An all-to-all's expert_dtype.")
      .def(
          "__call__",
          [](NativeExperts& e, const HeldRows& rows) {
            const ExpertRows& work = rows.rows();
            const nb::gil_scoped_release released;
            e.run(work);
          },
          nb::arg("rows"),
          nb::sig("def __call__(self, rows: ExpertRows) -> None"),
          "Reads rows.x and writes rows.out for all rows of an exchange.")
      .def(
          "apply",
          [](NativeExperts& e, nb::handle x, nb::handle counts, nb::handle out) {
            return e.apply(Array(x, "x"), Array(counts, "counts"), out, framework_of(x));
          },
          nb::arg("x"),
          nb::arg("counts"),
          nb::arg("out").none() = nb::none(),
          "Rows without an exchange: x [rows, H] of `dtype`, those of slot 0 first, counts [L] "
          "int32 of "
          "each. Returns [rows, H]; `out` may be float32 or bfloat16.");
}

}  // namespace ferry::python
