#include "byte_exchange.h"

#include <fmt/format.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>

#include "arrays.h"
#include "ferry/core/error.h"
#include "ferry/kernels/kernels.h"
#include "settings.h"

namespace ferry::python {

ByteExchange::ByteExchange(std::shared_ptr<CommState> comm, const Options& options)
    : comm_(std::move(comm)),
      options_(options),
      transport_(comm_->transport()),
      masked_(static_cast<std::size_t>(transport_.size())),
      waited_us_(masked_.size()) {
  const Capabilities can = transport_.capabilities();
  options_.mask = options_.mask && can.survives_peer_death;
  options_.capacity = std::min(options_.capacity, can.max_put_bytes - sizeof(Header));
  rest_.resize(masked_.size());
  const std::size_t places = 2 * masked_.size() * (options_.capacity + sizeof(Header));
  comm_->run("exchange", false, [&] {
    region_ = transport_.allocate_region(2 * places, transport_.size());
  });
}

ByteExchange::~ByteExchange() {
  std::optional<nb::gil_scoped_release> released;
  if (PyGILState_Check() != 0) released.emplace();
  region_.reset();
}

/// In the turn of the next round.
std::size_t ByteExchange::place(Rank source) const {
  const std::size_t turn = rounds_done_ % 2;
  return (turn * masked_.size() + static_cast<std::size_t>(source)) *
         (options_.capacity + sizeof(Header));
}

void ByteExchange::put(Rank peer, const Header& header, std::span<const std::byte> bytes) {
  const std::size_t offset = place(transport_.rank());
  const std::span<std::byte> window = transport_.peer_window(*region_, peer);
  const bool direct = !window.empty();
  // Elsewhere it is sent from memory of the region, which is free again by the same argument.
  std::byte* to = direct ? window.data() + offset
                         : region_->local().data() + region_->local().size() / 2 + place(peer);
  std::memcpy(to, &header, sizeof header);
  if (!bytes.empty()) std::memcpy(to + sizeof header, bytes.data(), bytes.size());
  Put one{.region = region_.get(), .peer = peer, .signal = transport_.rank()};
  if (!direct) {
    one.offset = offset;
    one.source = {to, sizeof header + bytes.size()};
  }
  transport_.put(one);
}

void ByteExchange::send(std::span<const std::span<const std::byte>> messages) {
  FERRY_CHECK(
      !sent_ && messages.size() == masked_.size(), "send() of {} messages", messages.size());
  std::size_t longest = 0;
  for (Rank peer = 0; peer < transport_.size(); ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    rest_[p].assign(messages[p].begin(), messages[p].end());
    if (peer != transport_.rank()) longest = std::max(longest, messages[p].size());
  }
  to_self_ = std::move(rest_[static_cast<std::size_t>(transport_.rank())]);
  own_rounds_ = std::max<std::uint64_t>(1, (longest + options_.capacity - 1) / options_.capacity);
  sent_ = true;
  post(0);
}

void ByteExchange::post(std::uint64_t round) {
  for (Rank peer = 0; peer < transport_.size(); ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    if (peer == transport_.rank() || masked_[p]) continue;
    const std::size_t first = std::min(rest_[p].size(), round * options_.capacity);
    const std::size_t bytes = std::min(rest_[p].size() - first, options_.capacity);
    try {
      put(peer,
          {.rounds = own_rounds_, .bytes = bytes},
          std::span<const std::byte>(rest_[p]).subspan(first, bytes));
    } catch (const TransportError& error) {
      if (!options_.mask || error.peer() != peer) throw;
      mask(peer);
    }
  }
}

/// Whether the source's message of this round is there; else it is masked.
bool ByteExchange::await(Rank source) {
  const auto s = static_cast<std::size_t>(source);
  while (!masked_[s]) {
    try {
      const WaitResult result =
          transport_.wait(*region_, source, rounds_done_ + 1, deadline_in(options_.timeout));
      if (result == WaitResult::reached) return true;
      if (!options_.mask) {
        throw TransportError(
            TransportError::Kind::timeout,
            source,
            fmt::format("rank {} waited {} s for rank {}; that rank hangs or is slow",
                        transport_.rank(),
                        std::chrono::duration<double>(options_.timeout).count(),
                        source));
      }
      mask(source);
    } catch (const TransportError& error) {
      const Rank gone = error.peer();
      if (!options_.mask || gone < 0 || gone == transport_.rank() ||
          masked_[static_cast<std::size_t>(gone)]) {
        throw;
      }
      mask(gone);  // it may be another than the one that is waited for
    }
  }
  return false;
}

std::vector<std::optional<ByteExchange::Message>> ByteExchange::recv() {
  FERRY_CHECK(sent_, "recv() without a send()");
  std::vector<std::optional<Message>> messages(masked_.size());
  messages[static_cast<std::size_t>(transport_.rank())] = std::move(to_self_);
  std::fill(waited_us_.begin(), waited_us_.end(), 0);
  std::uint64_t rounds = own_rounds_;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    if (round > 0) post(round);
    for (Rank source = 0; source < transport_.size(); ++source) {
      const auto s = static_cast<std::size_t>(source);
      if (source == transport_.rank()) continue;
      const auto begin = std::chrono::steady_clock::now();
      const bool there = await(source);
      waited_us_[s] += std::chrono::duration_cast<std::chrono::microseconds>(
                           std::chrono::steady_clock::now() - begin)
                           .count();
      if (!there) {
        messages[s].reset();
        continue;
      }
      const std::byte* from = region_->local().data() + place(source);
      Header header;
      std::memcpy(&header, from, sizeof header);
      rounds = std::max(rounds, header.rounds);
      if (!messages[s]) messages[s].emplace();
      messages[s]->insert(
          messages[s]->end(), from + sizeof header, from + sizeof header + header.bytes);
    }
    ++rounds_done_;
  }
  sent_ = false;
  return messages;
}

void ByteExchange::mask(Rank rank) {
  if (rank < 0 || rank >= transport_.size() || rank == transport_.rank()) {
    fail<ConfigError>("rank {} cannot be masked here", rank);
  }
  const auto r = static_cast<std::size_t>(rank);
  if (masked_[r]) return;
  transport_.mask(rank);
  masked_[r] = true;
}

namespace {

void send(ByteExchange& self, CommState& comm, const nb::sequence& messages) {
  std::vector<Array> held;
  std::vector<std::span<const std::byte>> bytes;
  for (const nb::handle message : messages) {
    held.emplace_back(message, "message");
    held.back().check_packed({-1});
    if (held.back().type() != Element::u8) fail<ConfigError>("messages are arrays of uint8");
    bytes.emplace_back(held.back().data(), static_cast<std::size_t>(held.back().shape(0)));
  }
  comm.run("send", true, [&] { self.send(bytes); });
}

nb::list recv(ByteExchange& self, CommState& comm) {
  auto messages = comm.run("recv", true, [&] { return self.recv(); });
  nb::list out;
  for (auto& message : messages) {
    if (!message) {
      out.append(nb::none());
      continue;
    }
    auto held = std::make_shared<ByteExchange::Message>(std::move(*message));
    const View view{
        .data = held->data(), .shape = {held->size()}, .strides = {}, .type = Element::u8};
    out.append(make_array(view, Framework::numpy, keep(held)));
  }
  return out;
}

/// What Python holds.
struct Exchange {
  std::shared_ptr<CommState> comm;
  std::unique_ptr<ByteExchange> bytes;
};

/// Rows [rows, n] in a quantised wire's form: (codes uint8 [rows, n], scales [rows, groups]).
nb::tuple quantize(nb::handle rows, const std::string& name) {
  const WireType wire = parse_wire_type(name, "wire");
  if (!is_quantized(wire)) fail<ConfigError>("wire is {}, which is not quantised", name);
  const Array x(rows, "x");
  x.check_rows(-1, x.ndim() == 2 ? x.shape(1) : -1);
  const DType type = x.dtype();
  const std::int64_t n = x.shape(1);
  const WireScales scales = wire_scales(wire, n);
  const auto count = static_cast<std::size_t>(x.shape(0));
  auto codes = std::make_shared<std::vector<std::byte>>(count * static_cast<std::size_t>(n));
  auto factors = std::make_shared<std::vector<std::byte>>(
      count * static_cast<std::size_t>(scales.count) * scales.bytes);
  {
    const nb::gil_scoped_release released;
    const FlushDenormals flush;
    std::vector<std::byte> row(wire_row_bytes(wire, n));
    for (std::size_t r = 0; r < count; ++r) {
      kernels().encode(x.rows().row(static_cast<std::int64_t>(r)), type, row.data(), wire, n);
      std::copy_n(row.begin(), n, codes->begin() + static_cast<std::ptrdiff_t>(r) * n);
      const std::size_t bytes = static_cast<std::size_t>(scales.count) * scales.bytes;
      std::copy_n(row.begin() + static_cast<std::ptrdiff_t>(scales.offset),
                  bytes,
                  factors->begin() + static_cast<std::ptrdiff_t>(r * bytes));
    }
  }
  const View code_view{.data = codes->data(),
                       .shape = {count, static_cast<std::size_t>(n)},
                       .strides = {},
                       .type = Element::u8};
  const View scale_view{.data = factors->data(),
                        .shape = {count, static_cast<std::size_t>(scales.count)},
                        .strides = {},
                        .type = scales.bytes == 4 ? Element::f32 : Element::u8};
  return nb::make_tuple(make_array(code_view, Framework::numpy, keep(codes)),
                        make_array(scale_view, Framework::numpy, keep(factors)));
}

}  // namespace

void bind_byte_exchange(nb::module_& module) {
  nb::class_<Exchange>(module, "ByteExchange")
      .def(
          nb::new_([](const Comm& comm, const nb::dict& options) {
            Settings settings("ByteExchange", options);
            ByteExchange::Options parsed;
            parsed.capacity = settings.get("capacity", parsed.capacity);
            parsed.timeout = settings.seconds("timeout").value_or(parsed.timeout);
            parsed.mask = settings.get("mask", false);
            settings.finish();
            if (parsed.capacity < 1) fail<ConfigError>("capacity is 0 bytes");
            return new Exchange{comm.state(), std::make_unique<ByteExchange>(comm.state(), parsed)};
          }),
          nb::arg("comm"),
          nb::arg("options"))
      .def("send", [](Exchange& e, const nb::sequence& m) { send(*e.bytes, *e.comm, m); })
      .def("recv", [](Exchange& e) { return recv(*e.bytes, *e.comm); })
      .def_prop_ro("sent", [](const Exchange& e) { return e.bytes->sent(); })
      .def(
          "mask", [](Exchange& e, Rank rank) { e.bytes->mask(rank); }, nb::arg("rank"))
      .def_prop_rw(
          "timeout",
          [](const Exchange& e) {
            return std::chrono::duration<double>(e.bytes->timeout()).count();
          },
          [](Exchange& e, double seconds) { e.bytes->set_timeout(duration(seconds, "timeout")); })
      .def_prop_ro("masked", [](const Exchange& e) { return e.bytes->masked(); })
      .def_prop_ro("waited_us", [](const Exchange& e) { return e.bytes->waited_us(); });
  module.def("quantize", &quantize, nb::arg("x"), nb::arg("wire"));
}

}  // namespace ferry::python
