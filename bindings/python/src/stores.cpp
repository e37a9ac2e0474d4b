#include "stores.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <string>

#include "comm.h"
#include "ferry/core/error.h"
#include "ferry/tcp_store.h"
#include "ferry/world.h"
#include "interrupt.h"
#include "settings.h"

namespace ferry::python {

namespace {

nb::bytes to_bytes(std::span<const std::byte> value) {
  return nb::bytes(value.data(), value.size());
}

Store::Value from_bytes(const nb::bytes& value) {
  const auto* data = static_cast<const std::byte*>(value.data());
  return {data, data + value.size()};
}

/// Borrows the object.
std::unique_ptr<Store> callback_store(nb::handle object) {
  StoreCallbacks callbacks;
  callbacks.set = [object](const std::string& key, std::span<const std::byte> value) {
    const nb::gil_scoped_acquire gil;
    object.attr("set")(key, to_bytes(value));
  };
  callbacks.wait = [object](const std::string& key,
                            Deadline deadline) -> std::optional<Store::Value> {
    const nb::gil_scoped_acquire gil;
    const std::chrono::duration<double> left = deadline - std::chrono::steady_clock::now();
    const double seconds = deadline == Deadline::min() ? 0 : std::max(0.0, left.count());
    const nb::object value = object.attr("wait")(key, seconds);
    if (value.is_none()) return std::nullopt;
    return from_bytes(nb::cast<nb::bytes>(value));
  };
  callbacks.remove = [object](const std::string& key) {
    const nb::gil_scoped_acquire gil;
    object.attr("remove")(key);
  };
  return std::make_unique<CallbackStore>(std::move(callbacks));
}

/// Looks for signals while the server is not there yet.
std::unique_ptr<TcpStore> make_tcp_store(TcpStoreOptions options) {
  const nb::gil_scoped_release released;
  if (options.serve) return std::make_unique<TcpStore>(options);
  const std::chrono::nanoseconds timeout = options.timeout;
  const Deadline deadline = deadline_in(timeout);
  for (;;) {
    const std::chrono::nanoseconds left = deadline - std::chrono::steady_clock::now();
    const bool last = left <= std::chrono::seconds(1);
    options.timeout = last ? std::max(left, std::chrono::nanoseconds(1)) : std::chrono::seconds(1);
    try {
      auto store = std::make_unique<TcpStore>(options);
      if (last || options.timeout == timeout) return store;
      options.timeout = timeout;  // also of its answers
      return std::make_unique<TcpStore>(options);
    } catch (const TransportError&) {
      if (last) throw;
    }
    look_for_signals();
  }
}

}  // namespace

HeldStore::HeldStore(nb::handle object) : held_(nb::borrow(object)) {
  if (nb::try_cast<Store*>(object, store_)) return;
  own_ = callback_store(held_);
  store_ = own_.get();
}

void bind_stores(nb::module_& module) {
  nb::class_<Store>(
      module, "Store", "Where ranks meet: names with values (bytes) that all of them see.")
      .def(
          "set",
          [](Store& store, const std::string& key, const nb::bytes& value) {
            const Store::Value bytes = from_bytes(value);
            const nb::gil_scoped_release released;
            store.set(key, bytes);
          },
          nb::arg("key"),
          nb::arg("value"),
          "Writes a key, over an older value where there is one.")
      .def(
          "wait",
          [](Store& store, const std::string& key, double timeout) -> nb::object {
            std::optional<Store::Value> value;
            {
              const nb::gil_scoped_release released;
              value = interruptible(store)->wait(key, deadline_in(duration(timeout, "timeout")));
            }
            if (!value) return nb::none();
            return to_bytes(*value);
          },
          nb::arg("key"),
          nb::arg("timeout"),
          nb::sig("def wait(self, key: str, timeout: float) -> bytes | None"),
          "The value of a key as soon as somebody has set it; None after `timeout` seconds.")
      .def(
          "add",
          [](Store& store, const std::string& key, std::int64_t amount) {
            const nb::gil_scoped_release released;
            return store.add(key, amount);
          },
          nb::arg("key"),
          nb::arg("amount"),
          "Adds to a number that starts at 0, in one step for all callers; returns the sum.")
      .def(
          "remove",
          [](Store& store, const std::string& key) {
            const nb::gil_scoped_release released;
            store.remove(key);
          },
          nb::arg("key"),
          "Forgets a key; nothing happens where there is none.");
  nb::class_<LocalStore, Store>(module, "LocalStore", "A store for the threads of one process.")
      .def(nb::init<>());
  nb::class_<TcpStore, Store>(
      module, "TcpStore", "A store that one process serves, as long as the object lives.")
      .def(nb::new_([](std::string host, int port, bool serve, std::string secret, double timeout) {
             return make_tcp_store({.host = std::move(host),
                                    .port = port,
                                    .serve = serve,
                                    .secret = std::move(secret),
                                    .timeout = duration(timeout, "timeout"),
                                    .server = 0});
           }),
           nb::arg("host") = "127.0.0.1",
           nb::arg("port") = 0,
           nb::arg("serve") = false,
           nb::arg("secret") = "",
           nb::arg("timeout") = 30.0)
      .def_prop_ro("port", &TcpStore::port, "Where it is served.");
}

}  // namespace ferry::python
