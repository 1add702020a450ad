// mix.cpp THREADS MODE: allocates below C++ frames: templates, callbacks, virtual calls; MODE throw: exceptions.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define NOINLINE __attribute__((noinline))

static void use(const void *p)
{
	asm volatile("" ::"r"(p) : "memory");
}

template <int N> struct Deep {
	template <class F> NOINLINE static std::string go(F &&f, std::vector<std::string> v)
	{
		v.push_back(std::string(20 + N, 'x'));
		auto s = Deep<N - 1>::go([&](const std::string &q) { return f(q) + std::to_string(N); }, v);
		return s + v.back();
	}
};

template <> struct Deep<0> {
	template <class F> NOINLINE static std::string go(F &&f, std::vector<std::string> v)
	{
		return f(v.front() + " end of the chain, on the heap");
	}
};

struct Base {
	virtual ~Base() {}
	virtual std::unique_ptr<Base> clone(int depth) const = 0;
};

template <class T> struct Derived : Base {
	T value;
	std::vector<T> values;
	explicit Derived(T x) : value(x), values(10, x) {}
	std::unique_ptr<Base> clone(int depth) const override
	{
		if (depth <= 0)
			return std::make_unique<Derived<T>>(value);
		return std::make_unique<Derived<T>>(*this)->clone(depth - 1);
	}
};

struct Guard {
	std::string text;
	~Guard()
	{
		std::string copy = text + " in a destructor, while the exception is under way";
		use(copy.data());
	}
};

template <int N> NOINLINE int throwing(int depth)
{
	Guard guard{"a guard with a text long enough for the heap " + std::to_string(depth)};
	if (depth <= 0)
		throw std::runtime_error("an exception with a text long enough for the heap");
	if constexpr (N > 0)
		return throwing<N - 1>(depth - 1) + 1;
	else
		return throwing<9>(depth - 1) + 1;
}

NOINLINE static void nested(int depth)
{
	try {
		throwing<9>(depth);
	} catch (const std::exception &error) {
		std::string text = error.what();
		text += " caught, and copied to the heap";
		try {
			std::throw_with_nested(std::logic_error(text));
		} catch (std::exception &outer) {
			try {
				std::rethrow_if_nested(outer);
			} catch (...) {
				std::vector<int> values(100);
				use(values.data());
			}
		}
	}
}

NOINLINE static void one_round(std::mt19937 &random)
{
	Deep<12>::go([](const std::string &s) { return s + "!"; }, {});
	nested(random() % 12);
	std::map<std::string, std::vector<int>> keys;
	for (int i = 0; i < 20; i++)
		keys["a key with a long text " + std::to_string(random() % 50)].push_back(i);
	std::regex pattern("(a|b)*c(d+|e[fgh]{2,3})+$");
	std::smatch match;
	std::string text = "ababababcdddefgefgh";
	std::regex_search(text, match, pattern);
	std::ostringstream stream;
	stream << 1.5 << " " << text << std::endl;
	std::function<int(int)> count = [&](int n) -> int {
		std::vector<int> values(n + 1);
		return n <= 0 ? 0 : count(n - 1) + (int)values.size();
	};
	count(random() % 25);
	std::vector<std::string> strings;
	for (int i = 0; i < 40; i++)
		strings.push_back("string " + std::to_string(random()) + " with padding");
	std::sort(strings.begin(), strings.end(), [](const std::string &a, const std::string &b) {
		return std::string(a) + " a temporary on the heap" < std::string(b) + " a temporary on the heap";
	});
	Derived<int>(3).clone(random() % 4);
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	bool only_throw = argc > 2 && std::string(argv[2]) == "throw";
	auto work = [only_throw](unsigned seed) {
		std::mt19937 random(seed);
		for (;;) {
			if (only_throw)
				nested(random() % 20);
			else
				one_round(random);
		}
	};
	for (int i = 1; i < threads; i++)
		std::thread(work, i).detach();
	work(99);
}
