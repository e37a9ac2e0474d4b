#include "expert_rows.h"

#include <algorithm>
#include <numeric>

#include "errors.h"
#include "ferry/core/error.h"

namespace ferry::python {

namespace {

/// A copy as a numpy array of one dimension.
template <class T>
nb::object copied(std::span<const T> values, Element type) {
  auto held = std::make_shared<std::vector<T>>(values.begin(), values.end());
  auto* data = reinterpret_cast<std::byte*>(held->data());
  const View view{.data = data, .shape = {held->size()}, .strides = {}, .type = type};
  return make_array(view, Framework::numpy, keep(held));
}

}  // namespace

HeldRows::HeldRows(std::shared_ptr<RowsOwner> owner, const ExpertRows& rows, const RowsRoom& room)
    : owner_(std::move(owner)), rows_(rows), room_(room), exchange_(owner_->exchange()) {}

const ExpertRows& HeldRows::rows() const {
  if (exchange_ != owner_->exchange()) {
    throw StaleRows(
        "these rows were valid until combine_send(): their memory belongs to the next "
        "exchange; copy what is needed for longer");
  }
  return rows_;
}

/// [L, rows of a slot, columns], or [rows, columns].
std::vector<std::size_t> HeldRows::shape(std::size_t columns) const {
  const std::size_t slots = rows_.counts.size();
  if (rows_.format == DispatchFormat::padded) {
    return {slots, static_cast<std::size_t>(room_.of_slot), columns};
  }
  if (on_device()) return {static_cast<std::size_t>(room_.all), columns};
  std::int64_t end = 0;
  for (std::size_t l = 0; l < slots; ++l) {
    if (rows_.counts[l] > 0) end = std::max(end, rows_.offsets[l] + rows_.counts[l]);
  }
  return {static_cast<std::size_t>(end), columns};
}

nb::object HeldRows::strided(std::byte* base,
                             std::int64_t row_bytes,
                             std::size_t columns,
                             Element type,
                             bool writable) const {
  View view{.data = base,
            .shape = shape(columns),
            .strides = {},
            .type = type,
            .writable = writable,
            .place = rows_.place};
  view.strides = {row_bytes, static_cast<std::int64_t>(element_bytes(type))};
  if (view.shape.size() == 3) view.strides.insert(view.strides.begin(), room_.of_slot * row_bytes);
  return make_array(view, owner_->framework(), keep(owner_));
}

nb::object HeldRows::in() const {
  const ExpertRows& r = rows();
  if (r.format == DispatchFormat::row_pointers) {
    fail<ConfigError>("rows of layout row_pointers are no array; only Experts read them");
  }
  const std::optional<DType> plain = element_type(r.in_type);
  const bool fp8 = r.in_type == WireType::fp8 || r.in_type == WireType::fp8_pow2;
  const Element type = plain ? element_of(*plain) : fp8 ? Element::fp8 : Element::i8;
  return strided(const_cast<std::byte*>(r.in.base),
                 r.in.stride,
                 static_cast<std::size_t>(r.hidden),
                 type,
                 false);
}

nb::object HeldRows::scales() const {
  const ExpertRows& r = rows();
  const WireScales scales = wire_scales(r.in_type, r.hidden);
  if (scales.count == 0 || r.format == DispatchFormat::row_pointers) return nb::none();
  return strided(const_cast<std::byte*>(r.in.base) + scales.offset,
                 r.in.stride,
                 static_cast<std::size_t>(scales.count),
                 scales.bytes == 4 ? Element::f32 : Element::u8,
                 false);
}

nb::object HeldRows::out() const {
  const ExpertRows& r = rows();
  return strided(
      r.out.base, r.out.stride, static_cast<std::size_t>(r.hidden), element_of(r.out_type), true);
}

nb::object HeldRows::row_weights() const {
  const ExpertRows& r = rows();
  if (r.weights.empty()) return nb::none();
  View view{.data = reinterpret_cast<std::byte*>(const_cast<float*>(r.weights.data())),
            .shape = shape(1),
            .strides = {},
            .type = Element::f32,
            .writable = false,
            .place = rows_.place};
  view.shape.pop_back();
  return make_array(view, owner_->framework(), keep(owner_));
}

/// Numbers of each slot: a copy, on a device an array over them.
template <class T>
nb::object HeldRows::of_slots(std::span<const T> values, Element type) const {
  if (!on_device()) return copied(values, type);
  auto* data = reinterpret_cast<std::byte*>(const_cast<T*>(values.data()));
  return make_array({.data = data,
                     .shape = {values.size()},
                     .strides = {},
                     .type = type,
                     .writable = false,
                     .place = rows_.place},
                    owner_->framework(),
                    keep(owner_));
}

nb::object HeldRows::counts() const { return of_slots(rows().counts, Element::i32); }

nb::object HeldRows::offsets() const { return of_slots(rows().offsets, Element::i64); }

void HeldRows::check_host(std::string_view what) const {
  if (on_device())
    fail<ConfigError>("{}: counts and offsets lie on the device, and the host does not read them",
                      what);
}

std::int64_t HeldRows::num_rows() const {
  check_host("num_rows");
  const auto counts = rows().counts;
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

nb::object HeldRows::slots() const {
  const ExpertRows& r = rows();
  check_host("slots");
  const std::vector<std::size_t> dims = shape(1);
  auto held = std::make_shared<std::vector<std::int32_t>>(
      std::accumulate(dims.begin(), dims.end(), std::size_t{1}, std::multiplies<>()), -1);
  for (std::size_t l = 0; l < r.counts.size(); ++l) {
    std::fill_n(held->begin() + r.offsets[l], r.counts[l], static_cast<std::int32_t>(l));
  }
  const View view{.data = reinterpret_cast<std::byte*>(held->data()),
                  .shape = {held->size()},
                  .strides = {},
                  .type = Element::i32};
  return make_array(view, owner_->framework(), keep(held));
}

void bind_expert_rows(nb::module_& module) {
  nb::class_<HeldRows>(
      module,
      "ExpertRows",
      "The rows that one exchange has brought to this rank's slots, and where their "
      "results go. Row i of slot l is row offsets[l] + i; with the padded layout x[l, i]. "
      "Valid until combine_send(): every attribute raises StaleRows afterwards.")
      .def_prop_ro(
          "x",
          &HeldRows::in,
          "What experts read, [L, rows of a slot, H] (padded) or [rows, H] (ragged), of the "
          "expert_dtype; not to be written. No copy.")
      .def_prop_ro(
          "scales",
          &HeldRows::scales,
          "Of quantised rows: [.., H / 128] float32 (fp8, int8_block), [.., 1] (int8) or uint8 "
          "exponents (fp8_pow2); a value is code * scale. Else None.")
      .def_prop_ro("out",
                   &HeldRows::out,
                   "Where experts write, same indices as x; float32 or bfloat16. No copy.")
      .def_prop_ro("row_weights",
                   &HeldRows::row_weights,
                   "A number for each row by which the expert multiplies what it reads, or None.")
      .def_prop_ro("counts",
                   &HeldRows::counts,
                   "[L] int32: rows of each local slot (a copy; on a device, there).")
      .def_prop_ro("offsets",
                   &HeldRows::offsets,
                   "[L] int64: index of each slot's first row (a copy; on a device, there).")
      .def_prop_ro("slots",
                   &HeldRows::slots,
                   "[rows] int32: the local slot of each row, -1 where there is none (a copy).")
      .def_prop_ro(
          "layout",
          [](const HeldRows& r) { return std::string(format_name(r.rows().format)); },
          "'padded', 'ragged' or 'row_pointers'.")
      .def_prop_ro("num_rows", &HeldRows::num_rows, "Rows that have come, over all slots.");
}

}  // namespace ferry::python
