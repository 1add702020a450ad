/* sample.bpf.c: which allocations are followed, and which frees may concern one of them.
 *
 * Samples lie on the stream of allocated bytes as a Poisson process does, `sample_bytes` apart in the mean: a block of
 * `size` bytes holds at least one with the chance 1 - exp(-size / sample_bytes). As the process has no memory, each
 * call draws by itself, so that no state of a thread is needed, and the interval may change at any time. A block keeps
 * the chance with which it was drawn: user space divides by it.
 */

/* Slot of an address's hash -> tracked blocks whose addresses fall into it. A free that finds 0 there concerns no tracked
 * block, and needs no lookup in the much larger table of these. Written with `live`; never full.
 */
BPF_ARRAY(live_filter, u32, 1 << FILTER_BITS);

static inline u32 *filter_of(u64 address)
{
	/* Blocks are 16 bytes apart; the golden ratio spreads their numbers evenly. */
	u32 slot = ((address >> 4) * 0x9e3779b97f4a7c15ULL) >> (64 - FILTER_BITS);
	return live_filter.lookup(&slot);
}

static inline void filter_add(u64 address, u32 change)
{
	u32 *blocks = filter_of(address);
	if (blocks)
		__sync_fetch_and_add(blocks, change);
}

static inline int may_be_live(u64 address)
{
	u32 *blocks = filter_of(address);
	return blocks && *blocks;
}

/* 1 - exp(-x) for x in [0, 1), both in 1 / CERTAIN: the series to x^10, within 3 of 10^8. */
static inline u64 chance_of(u64 x)
{
	u64 sum = CERTAIN;
#pragma unroll
	for (u64 term = 10; term >= 2; term--)
		sum = CERTAIN - (x * sum >> 32) / term;
	return x * sum >> 32;
}

/* Draw for one call. Returns the chance with which it is taken; 0: it is not. */
static inline u64 draw(struct settings *s, u64 size)
{
	if (!size)
		size = 1;
	if (size >= s->sample_bytes)
		return CERTAIN;
	u64 x = size * s->sample_scale >> 16;
	if (x >= CERTAIN)
		return CERTAIN; /* the settings are being changed */
	u64 drawn = bpf_get_prandom_u32();
	if (drawn >= x)
		return 0; /* x is the larger: most calls end here */
	u64 chance = chance_of(x);
	return drawn < chance ? chance : 0;
}

/* What a sampled block stands for: bytes, and blocks << WEIGHT_SHIFT. */
static inline u64 bytes_for(struct live_value *block)
{
	if (block->chance >= CERTAIN || !block->chance)
		return block->size;
	return ((block->size << 32) + block->chance / 2) / block->chance;
}

static inline u64 blocks_for(struct live_value *block)
{
	if (block->chance >= CERTAIN || !block->chance)
		return 1 << WEIGHT_SHIFT;
	return ((CERTAIN << WEIGHT_SHIFT) + block->chance / 2) / block->chance;
}
