// The op `likelihood`, element by element: each likelihood is one struct with the negative log-likelihood of
// a target x under parameters p[0..parameters), and its derivatives by them. Adding one is adding its file here and its
// line to csrc/api/likelihoods.def; the loops and grids around it do not know which one they run.
#pragma once

#include "likelihoods/bernoulli.h"
#include "likelihoods/continuous_bernoulli.h"
#include "likelihoods/discretized_logistic.h"
#include "likelihoods/gaussian.h"
#include "likelihoods/laplace.h"
#include "likelihoods/negative_binomial.h"
#include "likelihoods/negative_binomial_mixture.h"
#include "likelihoods/poisson.h"
#include "likelihoods/zero_inflated_negative_binomial.h"
