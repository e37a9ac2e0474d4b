#include "apps/ferry/a2a_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>

#include "apps/ferry/line_plot.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;
using I = const A2aIteration&;

/// One operation of a measured case.
struct Operation {
  std::string_view name;
  double (*time)(I);
  double (*floor)(I);
  double (*classic)(I);
  double bytes = 0, wire_bytes = 0, network_bytes = 0;
};

std::vector<Operation> operations_of(const A2aMeasured& measured) {
  const A2aBytes& b = measured.result.bytes;
  std::vector<Operation> operations;
  if (!measured.a2a.fused()) {
    operations.push_back({"dispatch",
                          [](I i) { return i.dispatch; },
                          [](I i) { return i.floor_dispatch; },
                          [](I i) { return i.classic_dispatch; },
                          b.logical_dispatch,
                          b.wire_dispatch,
                          b.network_dispatch});
    operations.push_back({"combine",
                          [](I i) { return i.combine; },
                          [](I i) { return i.floor_combine; },
                          [](I i) { return i.classic_combine; },
                          b.logical_combine,
                          b.wire_combine,
                          b.network_combine});
  }
  operations.push_back({"total",
                        [](I i) { return i.total; },
                        [](I i) { return i.floor_dispatch + i.floor_combine; },
                        [](I i) { return i.classic_dispatch + i.classic_combine; },
                        b.logical_dispatch + b.logical_combine,
                        b.wire_dispatch + b.wire_combine,
                        b.network_dispatch + b.network_combine});
  return operations;
}

Summary summary_of(const std::vector<A2aIteration>& iterations, double (*value_of)(I)) {
  std::vector<double> values;
  values.reserve(iterations.size());
  for (const A2aIteration& i : iterations) values.push_back(value_of(i));
  return summarize(std::move(values));
}

double wait_in(std::string_view operation, const A2aWait& wait) {
  if (operation == "dispatch") return wait.dispatch_us;
  if (operation == "combine") return wait.combine_us;
  return wait.dispatch_us + wait.combine_us;
}

/// [ranks][sources]
template <class Value>
Json matrix_of(const A2aMeasured& measured, Value value) {
  Json matrix = Json::array();
  const auto ranks = static_cast<std::size_t>(measured.a2a.ranks);
  for (std::size_t i = 0; i < measured.result.waits.size(); ++i) {
    if (i % ranks == 0) matrix.push_back(Json::array());
    matrix.back().push_back(value(measured.result.waits[i]));
  }
  return matrix;
}

double consumer(I i) { return i.consumer; }

double counts(I i) { return i.counts; }

/// Empty where the choice of a backend brings it along.
std::string layout_label(const A2aCase& a2a) {
  return a2a.chosen.empty() ? std::string(format_name(a2a.exchange.format)) : "";
}

/// What tells this case from others, but for the ranks.
std::string kind_of(const A2aCase& a2a) {
  return fmt::format("{} {}{}{} over {}, {}, {} tokens",
                     asked_label(a2a),
                     layout_label(a2a),
                     a2a.chosen.empty() ? " " : "",
                     wires_label(a2a),
                     a2a.transport,
                     routing_name(a2a.routing),
                     a2a.tokens);
}

using Part = std::string (*)(const A2aCase&);

/// What a case's name tells beside its backend, where there is a choice.
constexpr std::array<Part, 5> kParts{
    [](const A2aCase& c) { return fmt::format("EP{}", c.ranks); },
    [](const A2aCase& c) { return c.transport; },
    [](const A2aCase& c) { return wires_label(c); },
    [](const A2aCase& c) { return std::string(routing_name(c.routing)); },
    [](const A2aCase& c) { return layout_label(c); }};

bool differs(Part part, const A2aCase& a2a, const std::vector<A2aMeasured>& all) {
  return std::any_of(all.begin(), all.end(), [&](const A2aMeasured& other) {
    return other.a2a.backend == a2a.backend && other.a2a.mode == a2a.mode &&
           part(other.a2a) != part(a2a);
  });
}

std::string line_name(const A2aCase& a2a, const std::vector<A2aMeasured>& all) {
  std::string name = asked_label(a2a);
  for (const Part part : kParts)
    if (differs(part, a2a, all)) name += ", " + part(a2a);
  return name;
}

void add_json(Json& rows, const A2aMeasured& measured) {
  const auto& [a2a, result] = measured;
  for (const Operation& op : operations_of(measured)) {
    const Summary time = summary_of(result.slowest, op.time);
    const Summary each = summary_of(result.all_ranks, op.time);
    rows.push_back(
        {{"backend", a2a.backend},
         {"mode", a2a.mode},
         {"chosen", a2a.chosen},
         {"layout", format_name(a2a.exchange.format)},
         {"transport", a2a.transport},
         {"ranks", a2a.ranks},
         {"hosts", result.hosts},
         {"threads", a2a.threads},
         {"tokens", a2a.tokens},
         {"hidden", a2a.hidden},
         {"experts", a2a.experts},
         {"topk", a2a.topk},
         {"dispatch_wire", wire_type_name(a2a.dispatch_wire)},
         {"expert_type", wire_type_name(a2a.expert_type)},
         {"combine_wire", wire_type_name(a2a.combine_wire)},
         {"routing", routing_name(a2a.routing)},
         {"op", op.name},
         {"mean_us", time.mean},
         {"stddev_us", time.stddev},
         {"p50_us", time.p50},
         {"p95_us", time.p95},
         {"p99_us", time.p99},
         {"min_us", time.min},
         {"all_ranks_p50_us", each.p50},
         {"all_ranks_p95_us", each.p95},
         {"all_ranks_p99_us", each.p99},
         {"bytes", op.bytes},
         {"wire_bytes", op.wire_bytes},
         {"host_bytes", op.wire_bytes - op.network_bytes},
         {"network_bytes", op.network_bytes},
         {"consumer_us", summary_of(result.slowest, consumer).mean},
         {"floor_us", summary_of(result.slowest, op.floor).p50},
         {"baseline", result.baseline},
         {"baseline_p50_us", summary_of(result.slowest, op.classic).p50},
         {"counts_us", summary_of(result.slowest, counts).p50},
         {"iterations", result.slowest.size()},
         {"waits_us",
          matrix_of(measured, [&](const A2aWait& wait) { return wait_in(op.name, wait); })},
         {"rows_from", matrix_of(measured, [](const A2aWait& wait) { return wait.rows; })}});
  }
}

}  // namespace

std::string wires_label(const A2aCase& a2a) {
  std::string out(wire_type_name(a2a.dispatch_wire));
  if (a2a.expert_type != a2a.dispatch_wire)
    out += fmt::format(">{}", wire_type_name(a2a.expert_type));
  return out + fmt::format("/{}", wire_type_name(a2a.combine_wire));
}

std::string a2a_json(const std::vector<A2aMeasured>& all) {
  Json rows = Json::array();
  for (const A2aMeasured& measured : all) add_json(rows, measured);
  return rows.dump(2) + "\n";
}

std::string a2a_heading(const A2aCase& first) {
  return fmt::format(
             "H {}, {} experts, top-{}; microseconds of the slowest rank, p50 (p99); floor: the "
             "same rows copied plainly; classic: sort + alltoallv in bf16 (MPI's own under "
             "mpirun); "
             "wire: "
             "dispatch/combine (dispatch>experts' type); KB: payload of a rank, between ranks of "
             "one "
             "host, between hosts\n",
             first.hidden,
             first.experts,
             first.topk) +
         fmt::format(
             "{:<25} {:<12} {:<7} {:>2} {:>6} {:<7} {:<15} {:<8} {:>18} {:>18} {:>8} {:>7} "
             "{:>9} {:>7} {:>9} {:>9} {:>9}\n",
             "backend",
             "layout",
             "over",
             "EP",
             "tokens",
             "routing",
             "wire",
             "op",
             "p50 (p99)",
             "mean +- dev",
             "floor",
             "x floor",
             "classic",
             "faster",
             "KB",
             "KB host",
             "KB net");
}

std::string a2a_lines(const A2aMeasured& measured) {
  const auto& [a2a, result] = measured;
  std::string lines;
  for (const Operation& op : operations_of(measured)) {
    const Summary time = summary_of(result.slowest, op.time);
    const double floor = summary_of(result.slowest, op.floor).p50;
    const double classic = summary_of(result.slowest, op.classic).p50;
    fmt::format_to(std::back_inserter(lines),
                   "{:<25} {:<12} {:<7} {:>2} {:>6} {:<7} {:<15} {:<8} {:>18} {:>18} {:>8.1f} "
                   "{:>7.2f} {:>9.1f} {:>6.1f}x {:>9.1f} {:>9.1f} {:>9.1f}\n",
                   backend_label(a2a),
                   format_name(a2a.exchange.format),
                   a2a.transport,
                   a2a.ranks,
                   a2a.tokens,
                   routing_name(a2a.routing),
                   wires_label(a2a),
                   op.name,
                   fmt::format("{:.1f} ({:.1f})", time.p50, time.p99),
                   fmt::format("{:.1f} +- {:.1f}", time.mean, time.stddev),
                   floor,
                   time.p50 / floor,
                   classic,
                   classic / time.p50,
                   op.bytes / 1000,
                   (op.wire_bytes - op.network_bytes) / 1000,
                   op.network_bytes / 1000);
  }
  return lines;
}

std::string a2a_wait_lines(const A2aMeasured& measured) {
  const auto& [a2a, result] = measured;
  const auto ranks = static_cast<std::size_t>(a2a.ranks);
  std::string lines = fmt::format(
      "  {}: microseconds that a rank (down) waited for a source (across), dispatch + combine of "
      "one exchange; (rows that came from it)\n",
      backend_label(a2a));
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    lines += fmt::format("  {:>5}", rank);
    for (std::size_t source = 0; source < ranks; ++source) {
      const A2aWait& wait = result.waits[rank * ranks + source];
      lines +=
          fmt::format(" {:>18}", fmt::format("{:.1f} ({:.1f})", wait_in("total", wait), wait.rows));
    }
    lines += "\n";
  }
  return lines;
}

std::string a2a_ep_tables(const std::vector<A2aMeasured>& all) {
  std::vector<int> sizes;
  std::vector<std::string> order;
  std::map<std::string, std::map<int, const A2aMeasured*>> tables;
  for (const A2aMeasured& measured : all) {
    const std::string title = kind_of(measured.a2a);
    if (tables[title].empty()) order.push_back(title);
    tables[title][measured.a2a.ranks] = &measured;
    sizes.push_back(measured.a2a.ranks);
  }
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  std::string text;
  auto out = std::back_inserter(text);
  for (const std::string& title : order) {
    const auto& cells = tables[title];
    fmt::format_to(out, "\n{} (us)\n\n|          |", title);
    for (const int size : sizes) fmt::format_to(out, " {:>16} |", fmt::format("EP{}", size));
    text += "\n|----------|";
    for (std::size_t i = 0; i < sizes.size(); ++i) text += "-----------------:|";
    text += "\n";
    for (const Operation& op : operations_of(*cells.begin()->second)) {
      fmt::format_to(out, "| {:<8} |", op.name);
      for (const int size : sizes) {
        const auto cell = cells.find(size);
        std::string value = "-";
        if (cell != cells.end()) {
          const Summary time = summary_of(cell->second->result.slowest, op.time);
          value = fmt::format("{:.1f} ± {:.1f}", time.mean, time.stddev);
        }
        fmt::format_to(out, " {:>16} |", value);
      }
      text += "\n";
    }
  }
  return text;
}

std::string a2a_plot(const std::vector<A2aMeasured>& all) {
  const A2aCase& first = all.front().a2a;
  std::string title = fmt::format(
      "Dispatch + combine: H {}, {} experts, top-{}", first.hidden, first.experts, first.topk);
  for (const Part part : kParts) {
    const bool common = std::all_of(
        all.begin(), all.end(), [&](const A2aMeasured& m) { return part(m.a2a) == part(first); });
    if (common) title += ", " + part(first);
  }
  LinePlot plot{
      std::move(title), "tokens per rank", "median of the slowest rank, microseconds", {}};
  std::vector<const A2aMeasured*> by_tokens;
  for (const A2aMeasured& measured : all) by_tokens.push_back(&measured);
  std::stable_sort(by_tokens.begin(), by_tokens.end(), [](const auto* a, const auto* b) {
    return a->a2a.tokens < b->a2a.tokens;
  });
  const auto add = [&](const std::string& name, const A2aMeasured& m, double us, bool reference) {
    auto line = std::find_if(plot.lines.begin(), plot.lines.end(), [&](const LinePlot::Line& l) {
      return l.name == name;
    });
    if (line == plot.lines.end()) {
      plot.lines.push_back({name, {}, {}, reference});
      line = std::prev(plot.lines.end());
    }
    line->x.push_back(m.a2a.tokens);
    line->y.push_back(us);
  };
  for (const A2aMeasured* m : by_tokens)
    add(line_name(m->a2a, all),
        *m,
        summary_of(m->result.slowest, operations_of(*m).back().time).p50,
        false);
  // The references of the first line: the others' differ by noise, or by layout.
  const std::string kind = line_name(first, all);
  for (const A2aMeasured* m : by_tokens) {
    if (line_name(m->a2a, all) != kind) continue;
    const Operation total = operations_of(*m).back();
    add("classic alltoallv", *m, summary_of(m->result.slowest, total.classic).p50, true);
    add("floor of " + kind, *m, summary_of(m->result.slowest, total.floor).p50, true);
  }
  return line_plot_svg(plot);
}

}  // namespace ferry
