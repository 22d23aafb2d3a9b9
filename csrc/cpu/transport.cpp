#include "cpu/transport.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

namespace vqk {
namespace {

constexpr double kFar = std::numeric_limits<double>::infinity();
constexpr std::int32_t kStart = -1;  // of a path
constexpr std::int32_t kSpare = -1;  // in the place of a row
constexpr std::int32_t kNobody = -1;
constexpr double kEqual = 1e-13;  // of the largest cost

}  // namespace

Transport::Transport(const TransportProblem& problem)
    : problem_(problem),
      nothing_(0),
      label_(problem.n, kNobody),
      edges_(problem.k),
      over_(problem.k),
      distance_(problem.k, kFar),
      step_(problem.k),
      settled_(problem.k),
      at_(problem.k, -1) {
    for (std::int64_t code = 0; code < problem.k; ++code) over_[code] = problem.spare[code] - problem.capacity;
    double largest = 0;
    for (std::int64_t at = 0; at < problem.n * problem.listed; ++at) {
        if (problem.cost[at] < kFar) largest = std::max(largest, problem.cost[at]);
    }
    nothing_ = kEqual * largest;
}

Transported Transport::run(std::int64_t rounds) {
    place_rows();
    for (std::int64_t source = 0; source < problem_.k; ++source) {
        const Transported end = drain(source, rounds);
        if (end != Transported::kPlaced) return end;
    }
    // one after the other: where many want the same, its price is another once the first are there
    while (!changed_.empty()) {
        const std::int32_t row = changed_.back(), best = cheapest(row);
        changed_.pop_back();
        if (!(total(row, best) < total(row, problem_.place[row]) - nothing_)) continue;
        --over_[label_[row]];
        move(row, best);
        ++over_[label_[row]];
        const Transported end = drain(label_[row], rounds);
        if (end != Transported::kPlaced) return end;
    }
    return Transported::kPlaced;
}

// Moves rows up until a code holds no more than it may.
Transported Transport::drain(std::int64_t source, std::int64_t& rounds) {
    for (; over_[source] > 0; --rounds) {
        if (rounds == 0) return Transported::kStopped;
        const std::int64_t code = search(source);
        if (code == kNobody) {
            std::copy(settled_.begin(), settled_.end(), problem_.reached);
            return Transported::kCutOff;
        }
        raise(distance_[code]);
        while (push(code)) {
        }
    }
    return Transported::kPlaced;
}

bool Transport::after(const Entry& a, const Entry& b) {
    return a.key > b.key || (a.key == b.key && a.row > b.row);
}

std::int64_t Transport::code(std::int64_t row, std::int64_t place) const {
    return problem_.codes[row * problem_.listed + place];
}

double Transport::cost(std::int64_t row, std::int64_t place) const {
    return problem_.cost[row * problem_.listed + place];
}

double Transport::total(std::int64_t row, std::int64_t place) const {
    return cost(row, place) + problem_.prices[code(row, place)];
}

std::int32_t Transport::cheapest(std::int64_t row) const {
    std::int32_t best = 0;
    for (std::int32_t place = 1; place < problem_.listed; ++place) {
        if (total(row, place) < total(row, best)) best = place;
    }
    return best;
}

// Rows that are nowhere take what is best for them; those that are somewhere are taken in, with the lists that they
// have.
void Transport::place_rows() {
    std::vector<std::int32_t> rows;
    for (std::int64_t row = 0; row < problem_.n; ++row) {
        std::int32_t& place = problem_.place[row];
        if (label_[row] != kNobody) {
            if (place >= 0) continue;
            leave(row);
            place = ~place;
            changed_.push_back(std::int32_t(row));
        } else {
            if (place < 0) place = cheapest(row);
            ++over_[code(row, place)];
        }
        label_[row] = std::int32_t(code(row, place));
        rows.push_back(std::int32_t(row));
    }
    const auto before = [&](std::int32_t a, std::int32_t b) { return label_[a] < label_[b]; };
    std::stable_sort(rows.begin(), rows.end(), before);
    for (auto first = rows.begin(); first != rows.end();) {
        const auto last = std::upper_bound(first, rows.end(), *first, before);
        enter_all(&*first, last - first);
        first = last;
    }
}

// Puts rows of one code on the edges to all others that they list.
void Transport::enter_all(const std::int32_t* rows, std::int64_t count) {
    const std::int64_t from = label_[rows[0]];
    Edges& edges = edges_[from];
    std::vector<std::size_t> size;
    for (std::size_t edge = 0; edge < edges.first.size(); ++edge) {
        at_[edges.first[edge].to] = std::int32_t(edge);
        size.push_back(edges.heaps[edge].size());
    }
    const auto each = [&](const auto& take) {
        for (std::int64_t i = 0; i < count; ++i) {
            for (std::int32_t other = 0; other < problem_.listed; ++other) {
                if (other != problem_.place[rows[i]]) take(rows[i], other, at_[code(rows[i], other)]);
            }
        }
    };
    std::vector<std::int32_t> fresh;
    each([&](std::int32_t row, std::int32_t other, std::int32_t& edge) {
        if (edge == kNobody) {
            edge = std::int32_t(size.size());
            size.push_back(0);
            fresh.push_back(std::int32_t(code(row, other)));
        }
        ++size[edge];
    });
    edges.heaps.resize(size.size());
    for (std::size_t edge = 0; edge < size.size(); ++edge) edges.heaps[edge].reserve(size[edge]);
    each([&](std::int32_t row, std::int32_t other, std::int32_t edge) {
        edges.heaps[edge].push_back({cost(row, other) - cost(row, problem_.place[row]), row, other});
    });
    // by where they lead once more
    for (const std::int32_t to : fresh) edges.first.push_back({0, to, kNobody});
    std::sort(edges.first.begin(), edges.first.end(), [](const Edge& a, const Edge& b) { return a.to < b.to; });
    std::vector<std::vector<Entry>> heaps;
    for (std::size_t edge = 0; edge < edges.first.size(); ++edge) {
        std::int32_t& at = at_[edges.first[edge].to];
        heaps.push_back(std::move(edges.heaps[at]));
        at = kNobody;
    }
    edges.heaps = std::move(heaps);
    for (std::size_t edge = 0; edge < edges.first.size(); ++edge) {
        std::make_heap(edges.heaps[edge].begin(), edges.heaps[edge].end(), after);
        refresh(from, edge);
    }
}

// Moves one row to an entry of its list.
void Transport::move(std::int64_t row, std::int32_t place) {
    leave(row);
    problem_.place[row] = place;
    label_[row] = std::int32_t(code(row, place));
    for (std::int32_t other = 0; other < problem_.listed; ++other) {
        if (other == place) continue;
        const std::size_t edge = edge_to(label_[row], code(row, other));
        std::vector<Entry>& heap = edges_[label_[row]].heaps[edge];
        heap.push_back({cost(row, other) - cost(row, place), std::int32_t(row), other});
        std::push_heap(heap.begin(), heap.end(), after);
        refresh(label_[row], edge);
    }
}

// Takes a row from the edges that it is first on.
void Transport::leave(std::int64_t row) {
    const std::int64_t from = label_[row];
    label_[row] = kNobody;
    for (std::size_t edge = 0; edge < edges_[from].first.size(); ++edge) {
        if (edges_[from].first[edge].row == row) refresh(from, edge);
    }
}

// Finds who is first on an edge.
void Transport::refresh(std::int64_t from, std::size_t edge) {
    Edge& first = edges_[from].first[edge];
    std::vector<Entry>& heap = edges_[from].heaps[edge];
    const auto is_there = [&](const Entry& entry) {
        return label_[entry.row] == from && code(entry.row, entry.place) == first.to &&
               cost(entry.row, entry.place) - cost(entry.row, problem_.place[entry.row]) == entry.key;
    };
    while (!heap.empty() && !is_there(heap.front())) {
        std::pop_heap(heap.begin(), heap.end(), after);
        heap.pop_back();
    }
    first.row = heap.empty() ? kNobody : heap.front().row;
    first.key = heap.empty() ? kFar : heap.front().key;
}

std::size_t Transport::edge_to(std::int64_t from, std::int64_t to) {
    Edges& edges = edges_[from];
    const auto before = [](const Edge& edge, std::int64_t code) { return edge.to < code; };
    const auto at = std::lower_bound(edges.first.begin(), edges.first.end(), to, before);
    const auto number = at - edges.first.begin();
    if (at == edges.first.end() || at->to != to) {
        edges.first.insert(at, {kFar, std::int32_t(to), kNobody});
        edges.heaps.insert(edges.heaps.begin() + number, std::vector<Entry>());
    }
    return number;
}

// The shortest path (Dijkstra) from a code that holds too much to one with room, if there is any. A row that moves on
// costs what it then pays beyond what it paid; a spare place the difference of the prices. What is next to nothing is
// nothing: where ways are equally long, rounding must not lead through every code.
std::int64_t Transport::search(std::int64_t source) {
    for (const std::int64_t code : met_) {
        distance_[code] = kFar;
        settled_[code] = false;
    }
    met_.clear();
    queue_.clear();
    order_.clear();
    relax(source, 0, {0, kStart, kSpare, 0});
    bool any_spare = false;
    while (!queue_.empty()) {
        const double distance = queue_.front().first;
        const std::int32_t code = std::int32_t(queue_.front().second);
        std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
        queue_.pop_back();
        if (settled_[code]) continue;
        settled_[code] = true;
        order_.push_back(code);
        if (over_[code] < 0) return code;
        const double price = problem_.prices[code];
        const std::int32_t number = step_[code].number + 1;
        // spare places are all where prices are lowest: the first there leads wherever others would
        if (problem_.spare[code] > 0 && !any_spare) {
            any_spare = true;
            for (std::int64_t to = 0; to < problem_.k; ++to) {
                relax(to, distance + std::max(problem_.prices[to] - price - nothing_, 0.0),
                      {number, code, kSpare, 0});
            }
        }
        const double* prices = problem_.prices;
        const double* distances = distance_.data();
        for (const Edge& edge : edges_[code].first) {
            const double there = distance + std::max(edge.key + (prices[edge.to] - price) - nothing_, 0.0);
            if (there <= distances[edge.to]) relax(edge.to, there, {number, code, edge.row, edge.key});
        }
    }
    return kNobody;
}

// Of equally short ways that of fewer steps, then that of the first row, so that the order of codes makes no
// difference.
void Transport::relax(std::int64_t to, double distance, const Step& step) {
    const Step& known = step_[to];
    const bool before = step.number < known.number || (step.number == known.number && step.row < known.row);
    if (settled_[to] || distance == kFar || distance > distance_[to]) return;
    if (distance == distance_[to] && !before) return;
    if (distance_[to] == kFar) met_.push_back(to);
    distance_[to] = distance;
    step_[to] = step;
    queue_.push_back({distance, std::int64_t(step.number) << 32 | to});
    std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
}

// Prices at which no row is better off elsewhere still, and the paths to all codes within `reach` cost nothing.
void Transport::raise(double reach) {
    for (const std::int64_t code : order_) problem_.prices[code] += std::max(reach - distance_[code], 0.0);
}

// Moves rows, or as many spare places as may, along the path to a code with room, and says whether it could: rows
// that cost no more than those by which the path was found may follow them.
bool Transport::push(std::int64_t code) {
    std::int64_t amount = -over_[code], to = code;
    for (; step_[to].from != kStart; to = step_[to].from) {
        const auto& [_, from, row, key] = step_[to];
        if (row != kSpare && !(edges_[from].first[edge_to(from, to)].key <= key + nothing_)) return false;
        amount = std::min<std::int64_t>(amount, row == kSpare ? problem_.spare[from] : 1);
    }
    amount = std::min(amount, over_[to]);
    if (amount <= 0) return false;
    over_[to] -= amount;
    over_[code] += amount;
    for (to = code; step_[to].from != kStart; to = step_[to].from) {
        const std::int64_t from = step_[to].from;
        if (step_[to].row == kSpare) {
            problem_.spare[from] -= amount;
            problem_.spare[to] += amount;
        } else {
            const Entry& first = edges_[from].heaps[edge_to(from, to)].front();
            move(first.row, first.place);
        }
    }
    return true;
}

}  // namespace vqk
