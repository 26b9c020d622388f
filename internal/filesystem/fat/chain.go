package fat

import (
	"encoding/binary"
	"io"
	"sync"
)

const (
	// stride is how many clusters of a chain lie between two that are remembered: a seek follows at most so
	// many, and the memory of a file of 4 GiB in clusters of 512 bytes is 128 KiB.
	stride = 256
	// windowSize is how much of the table is read at once.
	windowSize = 4 << 10
)

// window reads the table.
type window struct {
	fs  *FileSystem
	at  int64
	buf []byte
}

// next returns the entry of a cluster: the cluster after it, or what next says about ends. ok is false if the file ends with it.
func (w *window) next(cluster uint32) (after uint32, ok bool, err error) {
	if err := w.fs.checkCluster(cluster); err != nil {
		return 0, false, err
	}
	bit := int64(cluster) * int64(w.fs.bits)
	off, length := w.fs.table+bit/8, int64(w.fs.bits+7)/8
	if off < w.at || off+length > w.at+int64(len(w.buf)) {
		w.at = off &^ (windowSize - 1)
		w.buf = w.buf[:0]
		// An entry of 12 bits may lie across the end of the window.
		n := min(windowSize+4, w.fs.size-w.at)
		if n < off-w.at+length {
			return 0, false, damaged("the table is past the end of the device")
		}
		buf := make([]byte, n)
		if err := w.fs.read(buf, w.at); err != nil {
			return 0, false, err
		}
		w.buf = buf
	}
	b := w.buf[off-w.at:]
	var bad uint32
	switch w.fs.bits {
	case 12:
		after = uint32(binary.LittleEndian.Uint16(b)) >> (bit % 8) & 0xfff
		bad = 0xff7
	case 16:
		after = uint32(binary.LittleEndian.Uint16(b))
		bad = 0xfff7
	default:
		after = binary.LittleEndian.Uint32(b) & 0x0fffffff
		bad = 0x0ffffff7
	}
	if after > bad {
		return 0, false, nil
	}
	if after == bad || after == 0 {
		return 0, false, damaged("a file goes on after cluster %d with a cluster that is bad or free", cluster)
	}
	return after, true, w.fs.checkCluster(after)
}

func (f *FileSystem) checkCluster(cluster uint32) error {
	if cluster < firstCluster || cluster-firstCluster >= f.clusters {
		return damaged("cluster %d is not one of %d", cluster, f.clusters)
	}
	return nil
}

// chain is the content of a file or directory: size bytes in a chain of clusters.
type chain struct {
	fs   *FileSystem
	size int64

	mu sync.Mutex
	// known has every cluster of the chain whose place is a multiple of stride, as far as it was followed.
	known []uint32
	// lastPlace and last are where the last read was, so that the next one goes on from there.
	lastPlace int64
	last      uint32
	window    window
}

// newChain checks that a chain can have so many bytes. A chain that is a loop ends with the file.
func (f *FileSystem) newChain(first uint32, size int64) (*chain, error) {
	if err := f.checkCluster(first); err != nil {
		return nil, err
	}
	if need := (size + f.cluster - 1) / f.cluster; need > int64(f.clusters) {
		return nil, damaged("a file of %d bytes has %d clusters, and there are %d", size, need, f.clusters)
	}
	return &chain{fs: f, size: size, known: []uint32{first}, last: first, window: window{fs: f}}, nil
}

// ReadAt implements io.ReaderAt.
func (c *chain) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, damaged("offset %d is negative", off)
	}
	if off >= c.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > c.size-off {
		p, end = p[:c.size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		at, length, err := c.find(off+int64(done), int64(len(p)-done))
		if err != nil {
			return done, err
		}
		if err := c.fs.read(p[done:done+int(length)], at); err != nil {
			return done, err
		}
		done += int(length)
	}
	return done, end
}

// find returns where on the device a byte of the file is, and how many of the next want bytes follow it there.
func (c *chain) find(off, want int64) (at, length int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	place, within := off/c.fs.cluster, off%c.fs.cluster
	cluster, err := c.seek(place)
	if err != nil {
		return 0, 0, err
	}
	at, length = c.fs.clusterAt(cluster)+within, c.fs.cluster-within
	for length < want {
		after, err := c.seek(place + 1)
		if err != nil {
			return 0, 0, err
		}
		if after != cluster+1 {
			break
		}
		place, cluster = place+1, after
		length += c.fs.cluster
	}
	return at, min(length, want), nil
}

// seek returns the cluster at a place of the chain.
func (c *chain) seek(place int64) (uint32, error) {
	at := min(place/stride, int64(len(c.known)-1))
	from, cluster := at*stride, c.known[at]
	if c.lastPlace >= from && c.lastPlace <= place {
		from, cluster = c.lastPlace, c.last
	}
	for from < place {
		after, ok, err := c.window.next(cluster)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, damaged("a file of %d bytes ends after %d clusters", c.size, from+1)
		}
		from, cluster = from+1, after
		if from == int64(len(c.known))*stride {
			c.known = append(c.known, cluster)
		}
	}
	c.lastPlace, c.last = from, cluster
	return cluster, nil
}

// clusterAt is where a cluster is on the device.
func (f *FileSystem) clusterAt(cluster uint32) int64 {
	return f.data + int64(cluster-firstCluster)*f.cluster
}
