// How fast a head of a gated delta net forgets, for one token; the same bits on every machine.
#pragma once

namespace ferry {

/// ln(1 + e^x).
double softplus(double x);

/// By what the state is multiplied: e^(-rate * softplus(x)).
float delta_decay(double rate, double x);

}  // namespace ferry
