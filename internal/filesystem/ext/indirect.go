package ext

const directBlocks = 12

// lookupIndirect finds a block as ext2 does: 12 block numbers in the inode, then a block of numbers, a block of blocks of
// numbers, and one more.
func (f *FileSystem) lookupIndirect(in *inode, logical uint64) (run, error) {
	area := in.blockArea()
	if logical < directBlocks {
		return f.scanNumbers(area[:directBlocks*4], logical, logical)
	}
	perBlock := uint64(f.super.blockSize / 4)
	within, span := logical-directBlocks, uint64(1)
	for level := 1; level <= 3; level++ {
		span *= perBlock
		if within < span {
			number := uint64(le.Uint32(area[(directBlocks+level-1)*4:]))
			return f.descend(number, level, within, span, logical)
		}
		within -= span
	}
	return run{logical: logical, length: endOfMapping - logical}, nil
}

// descend finds the block that is within of the span blocks below a block of numbers.
func (f *FileSystem) descend(number uint64, level int, within, span, logical uint64) (run, error) {
	perBlock := uint64(f.super.blockSize / 4)
	for ; ; level-- {
		if number == 0 {
			return run{logical: logical, length: span - within}, nil
		}
		if err := f.checkBlocks(number, 1); err != nil {
			return run{}, err
		}
		block, err := f.dev.block(number)
		if err != nil {
			return run{}, err
		}
		if level == 1 {
			return f.scanNumbers(block, within, logical)
		}
		span /= perBlock
		number = uint64(le.Uint32(block[within/span*4:]))
		within %= span
	}
}

// scanNumbers returns the run that begins with the i-th of some block numbers.
func (f *FileSystem) scanNumbers(numbers []byte, i, logical uint64) (run, error) {
	number := func(i uint64) uint64 { return uint64(le.Uint32(numbers[i*4:])) }
	r := run{logical: logical, length: 1, physical: number(i)}
	if r.physical != 0 {
		r.state = data
	}
	for i++; i < uint64(len(numbers)/4); i++ {
		want := uint64(0)
		if r.state == data {
			want = r.physical + r.length
		}
		if number(i) != want {
			break
		}
		r.length++
	}
	if r.state == data {
		if err := f.checkBlocks(r.physical, r.length); err != nil {
			return run{}, err
		}
	}
	return r, nil
}
