package remote

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository/readcache"
)

// Image is an image that a server has. It is safe for concurrent use.
type Image struct {
	size, chunk int64

	// out is written by whoever has writing.
	writing sync.Mutex
	out     io.WriteCloser

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]question
	ended   error

	stop chan struct{}

	// zero has what is known of blocks of chunks: what was asked for once is not asked for again.
	zeroMu sync.Mutex
	zero   map[int64][]byte
}

var _ readcache.Image = (*Image)(nil)

// question waits for an answer of at most so many bytes.
type question struct {
	length int64
	answer chan answer
}

type answer struct {
	status byte
	data   []byte
}

// zeroBlock is how many chunks are asked for at once. It is a segment of an image.
// mostZeroBlocks bounds what is known, to 32 MiB.
const (
	zeroBlock      = 1024
	mostZeroBlocks = 32 << 10
)

// Connect reads the greeting of a server. It takes as long as the server needs to open the image.
func Connect(in io.Reader, out io.WriteCloser) (*Image, error) {
	hello := make([]byte, len(greeting)+16)
	if _, err := io.ReadFull(in, hello); err != nil {
		return nil, fmt.Errorf("connect to the reader of the repository: %w", err)
	}
	if string(hello[:len(greeting)]) != greeting {
		return nil, fmt.Errorf("connect to the reader of the repository: it says %q, want %q: the versions do not fit", hello[:len(greeting)], greeting)
	}
	i := &Image{out: out, waiting: map[uint64]question{}, stop: make(chan struct{}), zero: map[int64][]byte{}}
	i.size = int64(binary.BigEndian.Uint64(hello[len(greeting):]))
	i.chunk = int64(binary.BigEndian.Uint64(hello[len(greeting)+8:]))
	if i.size < 1 || i.size > block.MaxVolumeSize || i.chunk < 1 || i.chunk > block.MaxChunkSize {
		return nil, fmt.Errorf("connect to the reader of the repository: an image of %d bytes in chunks of %d makes no sense", i.size, i.chunk)
	}
	go i.receive(bufio.NewReaderSize(in, 1<<16))
	go i.ping(pingInterval)
	return i, nil
}

// Size is that of the image, in bytes.
func (i *Image) Size() int64 { return i.size }

// ChunkSize is in bytes.
func (i *Image) ChunkSize() int64 { return i.chunk }

// Close ends the connection: the server sees the end of its input.
func (i *Image) Close() error {
	i.end(ErrLost)
	return i.out.Close()
}

func (i *Image) end(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended != nil {
		return
	}
	i.ended = err
	close(i.stop)
	for id, q := range i.waiting {
		close(q.answer)
		delete(i.waiting, id)
	}
}

func (i *Image) receive(in io.Reader) {
	for {
		id, status, data, err := readAnswer(in, i.asked)
		if err != nil {
			i.end(fmt.Errorf("%w: %w", ErrLost, err))
			return
		}
		i.mu.Lock()
		q, known := i.waiting[id]
		delete(i.waiting, id)
		i.mu.Unlock()
		if known {
			q.answer <- answer{status, data}
		}
	}
}

// asked returns how many bytes a request is for that has no answer yet.
func (i *Image) asked(id uint64) (int64, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	q, known := i.waiting[id]
	return q.length, known
}

// ping does not wait for answers: they may be behind those of many reads.
func (i *Image) ping(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-i.stop:
			return
		case <-ticker.C:
			_ = i.send(request{kind: kindPing}) // a connection that has ended says so to whoever reads
		}
	}
}

func (i *Image) send(r request) error {
	i.writing.Lock()
	defer i.writing.Unlock()
	_, err := i.out.Write(r.encode())
	return err
}

// ask sends a request and waits for the answer.
func (i *Image) ask(kind byte, offset, length int64) ([]byte, error) {
	q := question{length, make(chan answer, 1)}
	i.mu.Lock()
	if i.ended != nil {
		defer i.mu.Unlock()
		return nil, i.ended
	}
	i.nextID++
	id := i.nextID
	i.waiting[id] = q
	i.mu.Unlock()

	if err := i.send(request{id, kind, offset, length}); err != nil {
		i.end(fmt.Errorf("%w: %w", ErrLost, err))
	}
	a, ok := <-q.answer
	if !ok {
		i.mu.Lock()
		defer i.mu.Unlock()
		return nil, i.ended
	}
	if a.status != statusOK {
		return nil, errors.New(string(a.data))
	}
	return a.data, nil
}

// ReadAt implements io.ReaderAt.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read image at %d: negative offset", off)
	}
	if off >= i.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > i.size-off {
		p, end = p[:i.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		n := min(len(p)-done, mostRead)
		data, err := i.ask(kindRead, off+int64(done), int64(n))
		if err == nil && len(data) != n {
			err = fmt.Errorf("%w: %d bytes instead of %d", ErrLost, len(data), n)
		}
		if err != nil {
			return done, fmt.Errorf("read image at %d: %w", off+int64(done), err)
		}
		done += copy(p[done:], data)
	}
	return len(p), end
}

// IsZero implements readcache.Image.
func (i *Image) IsZero(_ context.Context, chunk int64) (bool, error) {
	if chunk < 0 || chunk > (i.size-1)/i.chunk {
		return false, fmt.Errorf("image has no chunk %d", chunk)
	}
	number, within := chunk/zeroBlock, int(chunk%zeroBlock)
	i.zeroMu.Lock()
	defer i.zeroMu.Unlock()
	known := i.zero[number]
	if known == nil {
		var err error
		if known, err = i.ask(kindZero, number*zeroBlock, zeroBlock); err != nil {
			return false, fmt.Errorf("look up chunk %d: %w", chunk, err)
		}
		if len(i.zero) >= mostZeroBlocks {
			clear(i.zero)
		}
		i.zero[number] = known
	}
	if within >= len(known) {
		return false, fmt.Errorf("%w: nothing is said of chunk %d", ErrLost, chunk)
	}
	return known[within] == 1, nil
}
