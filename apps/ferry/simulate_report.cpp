#include "apps/ferry/simulate_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/ferry/line_plot.h"
#include "ferry/version.h"

namespace ferry {

namespace {

using ForecastJson = nlohmann::ordered_json;

/// docs/simulate.md, "Checked".
constexpr std::string_view kHowSure =
    "bytes and puts are exact for the tokens drawn; times on published tables that nothing was "
    "fitted "
    "to were off by 5.4 % (median of 88 rows; docs/simulate.md has them, and those not explained)";

std::string short_time(double us) {
  return us >= 1e5 ? fmt::format("{:.1f} ms", us / 1e3) : fmt::format("{:.1f} us", us);
}

ForecastJson percentiles_json(const Percentiles& p) {
  return {{"mean", p.mean}, {"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"max", p.max}};
}

ForecastJson levels_json(const std::vector<LevelForecast>& levels) {
  ForecastJson all = ForecastJson::array();
  for (const LevelForecast& level : levels) {
    all.push_back({{"link", level.name},
                   {"puts", level.puts},
                   {"bytes", level.bytes},
                   {"most_puts", level.most_puts},
                   {"most_bytes", level.most_bytes}});
  }
  return all;
}

ForecastJson one_json(const Forecasted& f) {
  const Forecast& o = f.forecast;
  ForecastJson shares = ForecastJson::object();
  for (std::size_t b = 0; b < kBounds; ++b) shares[std::string(kBoundNames[b])] = o.shares[b];
  ForecastJson parameters = ForecastJson::array();
  for (const Sensitivity& s : o.sensitivities) {
    parameters.push_back({{"parameter", s.parameter},
                          {"value", s.value},
                          {"origin", origin_name(s.origin)},
                          {"step_percent_if_10_percent_worse", s.percent}});
  }
  ForecastJson json{{"ranks", o.ranks},
                    {"hosts", o.hosts},
                    {"tokens", f.tokens},
                    {"backend", f.backend},
                    {"slots_per_rank", o.slots_per_rank},
                    {"dispatch_us", percentiles_json(o.dispatch_us)},
                    {"experts_us", percentiles_json(o.experts_us)},
                    {"combine_us", percentiles_json(o.combine_us)},
                    {"layer_us", o.layer_us},
                    {"other_us", o.other_us},
                    {"step_us", o.step_us},
                    {"tokens_per_s", o.tokens_per_s},
                    {"tokens_per_s_per_host", o.tokens_per_s_per_host},
                    {"balancedness", o.balancedness},
                    {"binds", kBoundNames[static_cast<std::size_t>(o.bound())]},
                    {"layer_shares", std::move(shares)},
                    {"dispatch_links", levels_json(o.dispatch)},
                    {"combine_links", levels_json(o.combine)},
                    {"parameters", std::move(parameters)}};
  if (const auto& b = o.step_balance) {
    json["per_step_balance"] = {{"layers", b->layers},
                                {"fetches", b->fetches},
                                {"bytes_between_hosts", b->bytes},
                                {"rows_moved", b->rows},
                                {"layer_us_without", b->layer_us_without}};
  }
  return json;
}

std::string levels_lines(const char* phase, const std::vector<LevelForecast>& levels) {
  std::string lines;
  for (const LevelForecast& level : levels) {
    lines += fmt::format("  {:<9} {:<12} {:>12.0f} {:>14.0f} {:>12.0f} {:>14.0f}\n",
                         phase,
                         level.name,
                         level.puts,
                         level.bytes,
                         level.most_puts,
                         level.most_bytes);
  }
  return lines;
}

std::string details(const Forecasted& f) {
  const Forecast& o = f.forecast;
  std::string text = fmt::format("\n{} ranks, {} tokens each, {}:\n", o.ranks, f.tokens, f.backend);
  text += fmt::format("  {:<9} {:>10} {:>10} {:>10} {:>10} {:>10}   us over ranks\n",
                      "",
                      "mean",
                      "p50",
                      "p90",
                      "p99",
                      "most");
  const auto percentiles = [&](const char* name, const Percentiles& p) {
    text += fmt::format("  {:<9} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f} {:>10.1f}\n",
                        name,
                        p.mean,
                        p.p50,
                        p.p90,
                        p.p99,
                        p.max);
  };
  percentiles("dispatch", o.dispatch_us);
  percentiles("experts", o.experts_us);
  percentiles("combine", o.combine_us);
  text += fmt::format("  {:<9} {:<12} {:>12} {:>14} {:>12} {:>14}\n",
                      "sends",
                      "link",
                      "mean puts",
                      "mean bytes",
                      "most puts",
                      "most bytes");
  text += levels_lines("dispatch", o.dispatch) + levels_lines("combine", o.combine);
  text += "  a layer's time is";
  for (std::size_t b = 0; b < kBounds; ++b)
    text += fmt::format("{} {} {:.0f} %", b > 0 ? "," : "", kBoundNames[b], 100 * o.shares[b]);
  if (const auto& b = o.step_balance) {
    text += fmt::format(
        "\n  per-step balance: {} instead of {} for a layer; {:.0f} % of layers gain; {:.1f} "
        "experts "
        "fetched, {:.0f} bytes between hosts, {:.0f} rows moved",
        short_time(o.layer_us),
        short_time(b->layer_us_without),
        100 * b->layers,
        b->fetches,
        b->bytes,
        b->rows);
  }
  text +=
      fmt::format("\n  {:<32} {:>12} {:<10} step, if it were a tenth worse\n", "parameter", "", "");
  for (const Sensitivity& s : o.sensitivities) {
    text += fmt::format("  {:<32} {:>12.4g} {:<10} {:+.1f} %\n",
                        s.parameter,
                        s.value,
                        origin_name(s.origin),
                        s.percent);
  }
  return text + fmt::format("  sure: {}\n", kHowSure);
}

}  // namespace

std::string forecast_table(const std::vector<Forecasted>& all, const Cluster& cluster) {
  std::string text = fmt::format("{}; nothing is run: these are forecasts\n", cluster.name);
  text +=
      fmt::format("{:>6} {:>6} {:>7} {:<20} {:>11} {:>11} {:>11} {:>11} {:>11} {:>12} {:>12}  {}\n",
                  "ranks",
                  "hosts",
                  "tokens",
                  "backend",
                  "dispatch",
                  "experts",
                  "combine",
                  "layer",
                  "step",
                  "tokens/s",
                  "per host",
                  "binds");
  for (const Forecasted& f : all) {
    const Forecast& o = f.forecast;
    text += fmt::format(
        "{:>6} {:>6} {:>7} {:<20} {:>11} {:>11} {:>11} {:>11} {:>11} {:>12.1f} {:>12.1f}  {}\n",
        o.ranks,
        o.hosts,
        f.tokens,
        f.backend,
        short_time(o.dispatch_us.max),
        short_time(o.experts_us.max),
        short_time(o.combine_us.max),
        short_time(o.layer_us),
        short_time(o.step_us),
        o.tokens_per_s,
        o.tokens_per_s_per_host,
        kBoundNames[static_cast<std::size_t>(o.bound())]);
  }
  return text + details(all.back());
}

std::string forecast_json(const std::vector<Forecasted>& all, const Cluster& cluster) {
  ForecastJson forecasts = ForecastJson::array();
  for (const Forecasted& f : all) forecasts.push_back(one_json(f));
  const ForecastJson report{{"version", version()},
                            {"cluster", cluster.name},
                            {"sure", kHowSure},
                            {"forecasts", std::move(forecasts)}};
  return report.dump(2) + "\n";
}

std::string forecast_plot(const std::vector<Forecasted>& all, const Cluster& cluster) {
  LinePlot plot{"Forecast: " + cluster.name, "ranks", "tokens per second", {}};
  std::vector<const Forecasted*> by_ranks;
  for (const Forecasted& f : all) by_ranks.push_back(&f);
  std::ranges::stable_sort(by_ranks, {}, [](const Forecasted* f) { return f->forecast.ranks; });
  for (const Forecasted* f : by_ranks) {
    const std::string name = fmt::format("{}, {} tokens", f->backend, f->tokens);
    auto line = std::ranges::find(plot.lines, name, &LinePlot::Line::name);
    if (line == plot.lines.end()) {
      plot.lines.push_back({name, {}, {}});
      line = std::prev(plot.lines.end());
    }
    line->x.push_back(f->forecast.ranks);
    line->y.push_back(f->forecast.tokens_per_s);
  }
  return line_plot_svg(plot);
}

}  // namespace ferry
