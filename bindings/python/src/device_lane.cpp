#include "device_lane.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <vector>

#include "ferry/core/error.h"
#include "lane.h"
#include "settings.h"

namespace ferry::python {

DeviceLane::DeviceLane(std::shared_ptr<CommState> comm,
                       const MemoryPlace& place,
                       const MoeAllToAll::Options& options)
    : comm_(std::move(comm)), options_(options) {
  Transport& transport = comm_->transport();
  const DispatcherOptions dispatcher =
      MoeAllToAll::dispatcher_options(options_, transport.size(), transport.capabilities());
  comm_->run("DeviceAllToAll", false, [&] {
    stream_ = std::make_unique<StreamExchange>(place, dispatcher, transport);
    if (!options_.row_weights) return;
    const std::vector<float> ones(static_cast<std::size_t>(options_.max_tokens) *
                                      static_cast<std::size_t>(options_.router.topk),
                                  1.0F);
    ones_ = upload<float>(stream_->queue(), ones);
  });
}

DeviceLane::~DeviceLane() {
  std::optional<nb::gil_scoped_release> released;
  if (PyGILState_Check() != 0) released.emplace();
  ones_.reset();
  stream_.reset();
}

DeviceTokens DeviceLane::tokens(nb::handle x,
                                nb::handle slots,
                                nb::handle weights,
                                nb::handle count) const {
  DeviceTokens tokens{.x = Array(x, "x", false, place()),
                      .slots = Array(slots, "topk_ids", false, place()),
                      .weights = Array(weights, "topk_weights", false, place()),
                      .framework = framework_of(x)};
  tokens.x.check_rows(-1, options_.hidden);
  tokens.x.dtype();
  const std::int64_t n = tokens.x.shape(0);
  if (n > options_.max_tokens)
    fail<ConfigError>("{} tokens, max_tokens is {}", n, options_.max_tokens);
  tokens.slots.check_packed({n, options_.router.topk});
  tokens.weights.check_packed({n, options_.router.topk});
  if (tokens.slots.type() != Element::i32 || tokens.weights.type() != Element::f32) {
    fail<ConfigError>("topk_ids is {} and topk_weights is {}: int32 and float32 on a device",
                      element_name(tokens.slots.type()),
                      element_name(tokens.weights.type()));
  }
  if (count.is_none()) return tokens;
  tokens.count = Array(count, "num_tokens", false, place());
  tokens.count.check_packed({1});
  if (tokens.count.type() != Element::i32)
    fail<ConfigError>("num_tokens is {}; it is int32", element_name(tokens.count.type()));
  return tokens;
}

Array DeviceLane::target(nb::handle out, std::int64_t tokens) const {
  Array target(out, "out", true, place());
  target.check_rows(tokens, options_.hidden);
  target.dtype();
  return target;
}

const float* DeviceLane::sum_weights(const DeviceTokens& tokens) const {
  return ones_ ? ones_->as<const float>() : reinterpret_cast<const float*>(tokens.weights.data());
}

void DeviceLane::dispatch_send(const DeviceTokens& t) {
  const auto* row_weights = reinterpret_cast<const float*>(t.weights.data());
  comm_->run("dispatch_send", false, [&] {
    stream_->exchange().dispatch_send(
        {.rows = t.x.rows(),
         .type = t.x.dtype(),
         .count = static_cast<int>(t.x.shape(0)),
         .tokens = reinterpret_cast<const int*>(t.count.data()),
         .slots = reinterpret_cast<const SlotId*>(t.slots.data()),
         .weights = sum_weights(t),
         .row_weights = options_.row_weights ? row_weights : nullptr});
  });
  sent_ = t;
  framework_ = t.framework;
}

nb::object DeviceLane::dispatch_recv() {
  ExpertRows rows =
      comm_->run("dispatch_recv", false, [&] { return stream_->exchange().dispatch_recv(); });
  rows.place = place();
  const std::int64_t all = stream_->exchange().expert_rows();
  const RowsRoom room{.of_slot = all / static_cast<std::int64_t>(rows.counts.size()), .all = all};
  return nb::cast(std::make_unique<HeldRows>(shared_from_this(), rows, room).release(),
                  nb::rv_policy::take_ownership);
}

void DeviceLane::combine_send() {
  comm_->run("combine_send", false, [&] { stream_->exchange().combine_send(); });
  ++exchange_;
}

void DeviceLane::combine_recv(const Array& out, bool accumulate) {
  comm_->run("combine_recv", false, [&] {
    stream_->exchange().combine_recv({.weights = sum_weights(sent_),
                                      .rows = out.mutable_rows(),
                                      .type = out.dtype(),
                                      .accumulate = accumulate});
  });
  out_ = out;
}

void DeviceLane::synchronise() {
  comm_->run("synchronise", true, [&] { stream_->synchronise(); });
}

void DeviceLane::mask(Rank rank) {
  if (options_.exchange.on_dead_rank != ExchangeOptions::OnDeadRank::mask)
    fail<ConfigError>(
        "mask: this all-to-all fails when a rank dies; make it with on_dead_rank='mask'");
  const int ranks = stream_->exchange().ranks();
  const Rank own = comm_->transport().rank();
  if (rank < 0 || rank >= ranks || rank == own)
    fail<ConfigError>("mask: rank {} of {}; another one than {} can be masked", rank, ranks, own);
  comm_->run("mask", true, [&] { stream_->exchange().mask(rank); });
}

std::vector<Rank> DeviceLane::masked() const {
  std::vector<Rank> all;
  for (Rank rank = 0; rank < stream_->exchange().ranks(); ++rank)
    if (stream_->exchange().is_masked(rank)) all.push_back(rank);
  return all;
}

std::vector<int> DeviceLane::lost_tokens() const {
  const std::span<const int> lost = stream_->exchange().lost_tokens();
  return {lost.begin(), lost.end()};
}

nb::object DeviceLane::registered_input() {
  const std::optional<DType> type = element_type(options_.dispatch_wire);
  if (!type) fail<ConfigError>("rows of a quantised dispatch_dtype are no plain array");
  return make_array({.data = stream_->exchange().registered_input().base,
                     .shape = {static_cast<std::size_t>(options_.max_tokens),
                               static_cast<std::size_t>(options_.hidden)},
                     .strides = {stream_->exchange().registered_input().stride,
                                 static_cast<std::int64_t>(dtype_bytes(*type))},
                     .type = element_of(*type),
                     .place = place()},
                    framework_,
                    keep(shared_from_this()));
}

void DeviceLane::leave() {
  comm_->run("close", true, [&] {
    stream_->synchronise();  // says whose fault it was, which leave() does not
    stream_->exchange().leave();
  });
}

namespace {

/// What Python sees. Closed, it has no lane; arrays over its memory keep that.
class DeviceAllToAll {
 public:
  DeviceAllToAll(const Comm& comm, const nb::dict& options) {
    Settings settings("DeviceAllToAll", options);
    const MemoryPlace place{
        .kind = MemoryKind::device,
        .device = settings.get("device", 0),
        .queue = std::bit_cast<void*>(settings.get<std::uintptr_t>("stream", 0))};
    const auto& state = comm.state();
    const MoeAllToAll::Options parsed = lane_options(settings, state->transport());
    settings.finish();
    lane_ = std::make_shared<DeviceLane>(state, place, parsed);
  }

  DeviceLane& lane() const {
    if (!lane_) fail<BrokenContract>("this all-to-all is closed");
    return *lane_;
  }

  void close() {
    if (!lane_) return;
    const std::shared_ptr<DeviceLane> lane = std::move(lane_);
    lane->leave();
  }

 private:
  std::shared_ptr<DeviceLane> lane_;
};

/// The four phases on arrays that are looked at once: what a graph captures.
struct BoundDeviceExchange {
  std::shared_ptr<DeviceLane> lane;
  DeviceTokens tokens;
  Array out;
};

BoundDeviceExchange bind_arrays(const DeviceAllToAll& self,
                                nb::handle x,
                                nb::handle ids,
                                nb::handle weights,
                                nb::handle out,
                                nb::handle num_tokens) {
  DeviceLane& lane = self.lane();
  DeviceTokens tokens = lane.tokens(x, ids, weights, num_tokens);
  Array target = lane.target(out, tokens.x.shape(0));
  return {lane.shared_from_this(), std::move(tokens), std::move(target)};
}

void bind_device_phases(nb::class_<DeviceAllToAll>& c) {
  c.def(nb::init<const Comm&, const nb::dict&>(), nb::arg("comm"), nb::arg("options"))
      .def(
          "dispatch_send",
          [](const DeviceAllToAll& a, nb::handle x, nb::handle ids, nb::handle w, nb::handle n) {
            a.lane().dispatch_send(a.lane().tokens(x, ids, w, n));
          },
          nb::arg("x"),
          nb::arg("topk_ids"),
          nb::arg("topk_weights"),
          nb::arg("num_tokens").none() = nb::none(),
          "Sends tokens: x [m, H] float32, bfloat16 or float16; topk_ids [m, K] int32 slots, "
          "negative means none; topk_weights [m, K] float32, which combine_recv uses and which "
          "must "
          "keep their contents until then. num_tokens [1] int32: only the first so many, a number "
          "that is read when the kernels run. All on the device; returns once the kernel is on the "
          "stream.")
      .def(
          "dispatch_recv",
          [](const DeviceAllToAll& a) { return a.lane().dispatch_recv(); },
          nb::sig("def dispatch_recv(self) -> ExpertRows"),
          "The rows of this rank's slots, for work on the stream; counts and offsets too lie on "
          "the "
          "device.")
      .def(
          "combine_send",
          [](const DeviceAllToAll& a) { a.lane().combine_send(); },
          "Says that what is on the stream writes rows.out; the rows are no longer valid.")
      .def(
          "combine_recv",
          [](const DeviceAllToAll& a, nb::object out, bool accumulate) {
            a.lane().combine_recv(a.lane().target(out, a.lane().sent_tokens()), accumulate);
            return out;
          },
          nb::arg("out"),
          nb::arg("accumulate") = false,
          "Writes the weighted sums to out [m, H] float32, bfloat16 or float16. Returns it.")
      .def(
          "synchronise",
          [](const DeviceAllToAll& a) { a.lane().synchronise(); },
          "Waits for the stream and raises what the kernels ran into: a rank that did not come "
          "within the timeout, an id that is no slot's. Not while the stream is captured.")
      .def("bind",
           &bind_arrays,
           nb::arg("x"),
           nb::arg("topk_ids"),
           nb::arg("topk_weights"),
           nb::arg("out"),
           nb::arg("num_tokens").none() = nb::none(),
           "The four phases on these arrays, which are looked at once: for loops, and for graphs, "
           "in whose capture no array may be looked at.")
      .def(
          "registered_input",
          [](const DeviceAllToAll& a) { return a.lane().registered_input(); },
          "[max_tokens, H] of dispatch_dtype where peers read this rank's tokens: rows written "
          "there "
          "and passed as x are not copied again.")
      .def(
          "mask",
          [](const DeviceAllToAll& a, Rank rank) { a.lane().mask(rank); },
          nb::arg("rank"),
          "Goes on without a rank that is known to be gone. Needs on_dead_rank='mask'.")
      .def_prop_ro(
          "masked",
          [](const DeviceAllToAll& a) { return a.lane().masked(); },
          "Ranks that are left out, as of the last synchronise() or mask().")
      .def_prop_ro(
          "lost_tokens",
          [](const DeviceAllToAll& a) { return a.lane().lost_tokens(); },
          "As of the last synchronise(): tokens of the exchange before it whose sums lack experts "
          "of "
          "masked ranks.")
      .def("close",
           &DeviceAllToAll::close,
           "Waits for the stream and for all ranks, then frees it. Collective.");
}

}  // namespace

void bind_device_all_to_all(nb::module_& module) {
  nb::class_<BoundDeviceExchange>(
      module, "BoundDeviceExchange", "The four phases on arrays that are looked at once.")
      .def("dispatch_send", [](BoundDeviceExchange& b) { b.lane->dispatch_send(b.tokens); })
      .def(
          "dispatch_recv",
          [](BoundDeviceExchange& b) { return b.lane->dispatch_recv(); },
          nb::sig("def dispatch_recv(self) -> ExpertRows"))
      .def("combine_send", [](BoundDeviceExchange& b) { b.lane->combine_send(); })
      .def("combine_recv", [](BoundDeviceExchange& b) { b.lane->combine_recv(b.out, false); });
  nb::class_<DeviceAllToAll> all_to_all(module, "DeviceAllToAll");
  bind_device_phases(all_to_all);
}

}  // namespace ferry::python
