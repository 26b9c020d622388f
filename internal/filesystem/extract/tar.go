package extract

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/filesystem"
)

const (
	// smallFile is the largest file that is read ahead as a whole. waiting is how many items wait for their turn.
	smallFile = pieceSize
	waiting   = 16
	blockSize = 512
)

// Archiver writes a stream of tar, in the format of POSIX with the records that GNU tar, bsdtar and star know: SCHILY.xattr for
// attributes, and sparse files in the format 1.0 of GNU.
type Archiver struct {
	o        Options
	w        *tar.Writer
	raw      *output
	pool     pool
	progress *Progress
	result   Result
}

// NewArchiver makes an archiver. Of the options, Overwrite and Special have no meaning: everything is in the stream, and
// whoever unpacks it decides. The stream ends with Close.
func NewArchiver(w io.Writer, o Options) *Archiver {
	raw := &output{w: w}
	a := &Archiver{o: o, w: tar.NewWriter(raw), raw: raw, pool: newPool(), progress: o.Progress, result: Result{Lost: map[string]int64{}}}
	if a.progress == nil {
		a.progress = &Progress{}
	}
	return a
}

// output keeps the error of writing: tar.Writer has the same errors for what a header cannot express.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.err = err
	}
	return n, err
}

// Close ends the stream.
func (a *Archiver) Close() (Result, error) {
	a.result.Bytes = a.progress.Bytes.Load()
	return a.result, a.w.Close()
}

func (a *Archiver) problem(path string, err error) {
	a.result.Failed++
	a.o.Problem(path, err)
}

// member is a file on its way into the stream.
type member struct {
	*Item
	err error // what Walk says of it
	// The rest is set when ready is closed.
	ready      chan struct{}
	problem    error
	attributes map[string][]byte
	target     string
	extents    []block.Extent
	content    []byte // of a small file
}

// Add writes a file, or a directory with all that is in it, under a name, or the content of a directory without one. Of what
// cannot be read when its turn comes, nothing is in the stream. A file whose content ends while it is written ends the stream.
func (a *Archiver) Add(ctx context.Context, files filesystem.FileSystem, id filesystem.ID, name string) error {
	queue := make(chan *member, waiting)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(queue)
		slots := make(chan struct{}, workers)
		send := func(m *member) error {
			select {
			case queue <- m:
				return nil
			case <-groupCtx.Done():
				return groupCtx.Err()
			}
		}
		return Walk(groupCtx, files, id, func(item *Item) error {
			item.Path = path.Join(name, item.Path)
			m := &member{Item: item, ready: make(chan struct{})}
			slots <- struct{}{}
			go func() {
				defer func() { <-slots }()
				defer close(m.ready)
				m.problem = m.prepare(files)
			}()
			return send(m)
		}, func(at string, err error) {
			_ = send(&member{Item: &Item{Path: path.Join(name, at)}, err: err}) // the context is over
		})
	})
	group.Go(func() error {
		first := map[filesystem.ID]string{}
		for m := range queue {
			if m.err != nil {
				a.problem(m.Path, m.err)
				continue
			}
			<-m.ready
			if err := a.member(groupCtx, files, m, first); err != nil {
				return fmt.Errorf("write %q: %w", m.Path, err)
			}
		}
		return nil
	})
	return group.Wait()
}

// prepare reads what the header needs, and small files.
func (m *member) prepare(files filesystem.FileSystem) (err error) {
	if m.attributes, err = files.Attributes(m.ID); err != nil {
		return err
	}
	switch m.Info.Mode.Type() {
	case fs.ModeSymlink:
		m.target, err = files.ReadLink(m.ID)
	case 0:
		for e, err := range files.Extents(m.ID) {
			switch {
			case err != nil:
				return err
			case e.CheckWithin(m.Info.Size) != nil, len(m.extents) > 0 && e.Offset < m.extents[len(m.extents)-1].End():
				return fmt.Errorf("%w: extent %s is not in the file, or not in order", filesystem.ErrDamaged, e)
			case len(m.extents) == mostExtents:
				return fmt.Errorf("%w: it has more than %d extents", filesystem.ErrUnsupported, mostExtents)
			}
			m.extents = append(m.extents, e)
		}
		if m.Info.Size <= smallFile {
			content, err := files.Open(m.ID)
			if err != nil {
				return err
			}
			m.content = make([]byte, m.Info.Size)
			return readFull(content, m.content, 0)
		}
	default: // has no content
	}
	return err
}

// member writes one file.
func (a *Archiver) member(ctx context.Context, files filesystem.FileSystem, m *member, first map[filesystem.ID]string) error {
	if m.problem != nil {
		a.problem(m.Path, m.problem)
		return nil //nolint:nilerr // it is said, and the other files go on
	}
	header, ok := a.header(m, first)
	if !ok || header.Name == "" {
		return nil
	}
	refuse := func(err error) {
		if first[m.ID] == m.Path {
			delete(first, m.ID) // its other names must not refer to it
		}
		a.problem(m.Path, err)
	}
	small := header.Typeflag == tar.TypeReg && m.Info.Size <= smallFile
	if header.Typeflag == tar.TypeReg && !small {
		content, err := files.Open(m.ID)
		if err != nil {
			refuse(err)
			return nil
		}
		a.result.Files++
		return a.large(ctx, header, m, content)
	}
	if err := a.w.WriteHeader(header); a.raw.err != nil {
		return a.raw.err
	} else if err != nil {
		refuse(err) // it cannot be expressed: nothing was written
		return nil
	}
	a.result.Files++
	a.progress.Files.Add(1)
	if small {
		a.progress.Bytes.Add(m.Info.Size)
		_, err := a.w.Write(m.content)
		return err
	}
	return nil
}

// header is the header of a file. It is not ok if the file cannot be in a stream.
func (a *Archiver) header(m *member, first map[filesystem.ID]string) (*tar.Header, bool) {
	h := &tar.Header{
		Name: m.Path, Mode: int64(filesystem.UnixMode(m.Info.Mode)), Uid: int(m.Info.UID), Gid: int(m.Info.GID),
		ModTime: m.Info.Modified, Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	switch m.Info.Mode.Type() {
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
		if h.Name != "" {
			h.Name += "/"
		}
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, m.target
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(m.Info.Major), int64(m.Info.Minor)
	case fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(m.Info.Major), int64(m.Info.Minor)
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, m.Info.Size
	case fs.ModeSocket:
		a.result.Lost[LostSocket]++
		return nil, false
	default:
		a.problem(m.Path, fmt.Errorf("it is of a kind that is not known: %s", m.Info.Mode))
		return nil, false
	}
	if m.Info.Links > 1 && h.Typeflag != tar.TypeDir {
		if name, found := first[m.ID]; found {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, name, 0
			return h, true
		}
		first[m.ID] = m.Path
	}
	for name, value := range m.attributes {
		if strings.ContainsAny(name, "=\x00") {
			a.result.Lost[LostAttribute]++ // a record cannot have such a name
			continue
		}
		h.PAXRecords["SCHILY.xattr."+name] = string(value)
	}
	return h, true
}

// large writes a file that was not read ahead: with its holes, if it has any.
func (a *Archiver) large(ctx context.Context, h *tar.Header, m *member, content io.ReaderAt) error {
	data := int64(0)
	for _, e := range m.extents {
		data += e.Length
	}
	a.progress.Files.Add(1)
	if data == m.Info.Size {
		if err := a.w.WriteHeader(h); err != nil {
			return err
		}
		return stream(ctx, content, m.extents, a.w, a.pool, a.progress)
	}
	list := sparseMap(m.extents, m.Info.Size)
	if err := a.w.Flush(); err != nil {
		return err
	}
	size := int64(len(list)) + data
	if _, err := a.raw.Write(sparseHeader(h, size)); err != nil {
		return err
	}
	if _, err := a.raw.Write(list); err != nil {
		return err
	}
	if err := stream(ctx, content, m.extents, a.raw, a.pool, a.progress); err != nil {
		return err
	}
	_, err := a.raw.Write(make([]byte, -size&(blockSize-1)))
	return err
}

// sparseMap is what the content of a sparse file begins with: the number of extents, and where each is and how long, as decimal
// numbers in lines, padded to a block. The last one has the end of the file.
func sparseMap(extents []block.Extent, size int64) []byte {
	if n := len(extents); n == 0 || extents[n-1].End() < size {
		extents = append(extents[:n:n], block.Extent{Offset: size})
	}
	b := append(strconv.AppendInt(nil, int64(len(extents)), 10), '\n')
	for _, e := range extents {
		b = append(strconv.AppendInt(b, e.Offset, 10), '\n')
		b = append(strconv.AppendInt(b, e.Length, 10), '\n')
	}
	return append(b, make([]byte, -len(b)&(blockSize-1))...)
}

// sparseHeader is a header of type x with the records, and the header of a file of size bytes in the stream. The
// library of Go does not write those records.
func sparseHeader(h *tar.Header, size int64) []byte {
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(h.Size, 10),
		"path": path.Join(path.Dir(h.Name), "GNUSparseFile.0", path.Base(h.Name)), "size": strconv.FormatInt(size, 10),
		"uid": strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid), "mtime": paxTime(h),
	}
	for k, v := range h.PAXRecords {
		records[k] = v
	}
	var body []byte //nolint:prealloc // its length is not known
	for k, v := range records {
		body = append(body, paxRecord(k, v)...)
	}
	b := ustar("PaxHeaders.0", 'x', int64(len(body)), 0o644)
	b = append(b, body...)
	b = append(b, make([]byte, -len(body)&(blockSize-1))...)
	return append(b, ustar("GNUSparseFile.0", tar.TypeReg, size&(1<<33-1), h.Mode)...)
}

func paxTime(h *tar.Header) string {
	sec, nsec := h.ModTime.Unix(), int64(h.ModTime.Nanosecond())
	if h.ModTime.IsZero() {
		sec, nsec = 0, 0
	}
	sign := ""
	if sec < 0 && nsec > 0 { // a fraction counts away from zero
		sign, sec, nsec = "-", -sec-1, 1e9-nsec
	} else if sec < 0 {
		sign, sec = "-", -sec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}

// paxRecord is "LENGTH KEY=VALUE\n", and the length is that of all of it.
func paxRecord(key, value string) string {
	length := len(key) + len(value) + 3
	for n := 0; n != length; {
		n = length
		length = len(key) + len(value) + 3 + len(strconv.Itoa(n))
	}
	return fmt.Sprintf("%d %s=%s\n", length, key, value)
}

// ustar is a header block. What does not fit into it is in the records.
func ustar(name string, kind byte, size, mode int64) []byte {
	b := make([]byte, blockSize)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", mode&0o7777, 0, 0, size, 0))
	copy(b[148:], "        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
