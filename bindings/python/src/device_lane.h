// The four phases in a device's memory, on a stream of the caller's, for Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "arrays.h"
#include "comm.h"
#include "expert_rows.h"
#include "ferry/exchange/gpu/stream_exchange.h"
#include "ferry/moe_forward.h"

namespace ferry::python {

/// Tokens of this rank in the device's memory, as arrays that are checked. Kept by who calls.
struct DeviceTokens {
  Array x;        ///< [tokens, H], f32, bf16 or f16
  Array slots;    ///< int32 [tokens, K], packed
  Array weights;  ///< f32 [tokens, K], packed
  Array count;    ///< int32 [1], or nothing: all of x
  Framework framework = Framework::numpy;
};

/// One all-to-all of a rank on a device. Owned by its Python object and by arrays over its memory;
/// owns its part of the comm. Threads: as the comm. Phases return once their kernels are on the
/// stream; arrays that they read are kept until the next exchange's, as the stream's own work may
/// still read them.
class DeviceLane : public RowsOwner, public std::enable_shared_from_this<DeviceLane> {
 public:
  DeviceLane(std::shared_ptr<CommState> comm,
             const MemoryPlace& place,
             const MoeAllToAll::Options& options);
  ~DeviceLane() override;

  const MemoryPlace& place() const { return stream_->place(); }

  /// Throw ConfigError for arrays of another shape, type or place.
  DeviceTokens tokens(nb::handle x, nb::handle slots, nb::handle weights, nb::handle count) const;
  Array target(nb::handle out, std::int64_t tokens) const;

  void dispatch_send(const DeviceTokens& tokens);
  nb::object dispatch_recv();
  void combine_send();
  void combine_recv(const Array& out, bool accumulate);
  void synchronise();
  nb::object registered_input();

  void mask(Rank rank);
  std::vector<Rank> masked() const;
  std::vector<int> lost_tokens() const;

  /// Of the exchange in progress.
  std::int64_t sent_tokens() const { return sent_.x.shape(0); }

  /// Waits until the stream and all ranks are done with its memory. Collective.
  void leave();

 private:
  /// By which results are added up.
  const float* sum_weights(const DeviceTokens& tokens) const;

  const std::shared_ptr<CommState> comm_;
  const MoeAllToAll::Options options_;
  std::unique_ptr<StreamExchange> stream_;
  std::unique_ptr<GpuMemory> ones_;  // weights of results, with row_weights
  DeviceTokens sent_;
  Array out_;
};

void bind_device_all_to_all(nb::module_& module);

}  // namespace ferry::python
