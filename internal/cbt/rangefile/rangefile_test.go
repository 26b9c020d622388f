package rangefile_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/cbt/cbttest"
	"github.com/blockmover/blockmover/internal/cbt/rangefile"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

const mib = 1 << 20

func render(extents []block.Extent) string {
	var text []byte
	for _, e := range extents {
		text = rangefile.Append(text, e)
	}
	return string(text)
}

func parse(t testing.TB, size int64, extents ...block.Extent) *rangefile.List {
	t.Helper()
	list, err := rangefile.Parse(strings.NewReader(render(extents)), size)
	require.NoError(t, err)
	return list
}

func extents(t testing.TB, size int64, list *rangefile.List) []block.Extent {
	t.Helper()
	var got []block.Extent
	s := rangefile.Source{Capacity: size, AllocatedRanges: list}
	require.NoError(t, s.Allocated(t.Context(), 0, func(b cbt.Batch) error {
		got = append(got, b.Blocks...)
		return nil
	}))
	return got
}

// perBase has a Source for each base, because the suite asks for several.
type perBase struct {
	t *testing.T
	v cbttest.Volume
}

func (p perBase) source(base cbt.ChangeID) rangefile.Source {
	if _, ok := p.v.Changed[base]; !ok {
		base = "base"
	}
	return rangefile.Source{
		Capacity:        p.v.Capacity,
		AllocatedRanges: parse(p.t, p.v.Capacity, p.v.Allocated...),
		ChangedRanges:   parse(p.t, p.v.Capacity, p.v.Changed[base]...),
		Base:            base,
	}
}

func (p perBase) Allocated(ctx context.Context, from int64, record func(cbt.Batch) error) error {
	return p.source("base").Allocated(ctx, from, record)
}

func (p perBase) Changed(ctx context.Context, base cbt.ChangeID, from int64, record func(cbt.Batch) error) error {
	return p.source(base).Changed(ctx, base, from, record)
}

func TestSourceContract(t *testing.T) {
	cbttest.Contract(t, func(t *testing.T, v cbttest.Volume) cbt.Source { return perBase{t, v} })
}

func TestSourceWithoutLists(t *testing.T) {
	s := rangefile.Source{Capacity: mib}
	record := func(cbt.Batch) error { return nil }
	require.ErrorIs(t, s.Allocated(t.Context(), 0, record), cbt.ErrUnavailable)
	require.ErrorIs(t, s.Changed(t.Context(), "base", 0, record), cbt.ErrUnavailable)
}

func TestParse(t *testing.T) {
	for text, want := range map[string][]block.Extent{
		"":                                 nil,
		`{"offset":0,"length":1}`:          {{Offset: 0, Length: 1}},
		`{"length":1,"offset":7}` + "\r\n": {{Offset: 7, Length: 1}},
		" { \"offset\" : 10 ,\t\"length\" : 20 } \n":                 {{Offset: 10, Length: 20}},
		`{"offset":0,"length":1}` + "\n" + `{"offset":1,"length":9}`: {{Offset: 0, Length: 10}},
		`{"offset":0,"length":1}` + "\n" + `{"offset":2,"length":9}`: {{Offset: 0, Length: 1}, {Offset: 2, Length: 9}},
	} {
		list, err := rangefile.Parse(strings.NewReader(text), mib)
		require.NoError(t, err, "%q", text)
		require.Equal(t, want, extents(t, mib, list), "%q", text)
	}
}

func TestParseRefuses(t *testing.T) {
	const good = `{"offset":1000,"length":1000}` + "\n"
	for text, want := range map[string]string{
		"\n":                                       "line 1: want {",
		good + "\n":                                "line 2",
		"[1,2]":                                    "line 1: want {",
		`{}`:                                       "want {",
		`{"offset":1}`:                             "want {",
		`{"offset":1,"length":1,"x":1}`:            "want {",
		`{"offset":1,"length":1}{`:                 "want {",
		`{"offset":1,"offset":1}`:                  "twice",
		`{"Offset":1,"length":1}`:                  "want {",
		`{"offset":-1,"length":1}`:                 "number of bytes",
		`{"offset":01,"length":1}`:                 "number of bytes",
		`{"offset":1.5,"length":1}`:                "want {",
		`{"offset":"1","length":1}`:                "number of bytes",
		`{"offset":1,"length":0}`:                  "length 0",
		`{"offset":99999999999999999999,"l":1}`:    "too large",
		`{"offset":1048576,"length":1}`:            "outside the volume of 1048576 bytes",
		`{"offset":1048575,"length":2}`:            "outside the volume of 1048576 bytes",
		good + `{"offset":1999,"length":1}`:        "line 2: range [1999,2000) begins before the end 2000",
		good + `{"offset":0,"length":1}`:           "line 2: range [0,1) begins before the end 2000",
		`{"offset":1,` + strings.Repeat(" ", 2000): "longer than 1024 bytes",
	} {
		_, err := rangefile.Parse(strings.NewReader(text), mib)
		require.ErrorContains(t, err, want, "%q", text)
	}
}

// FuzzParse compares with encoding/json, which accepts more, and checks that what was
// accepted can be written and read again.
func FuzzParse(f *testing.F) {
	f.Add(`{"offset":0,"length":1}`)
	f.Add("{\"offset\":10,\"length\":1}\n{\"length\":5,\"offset\":20}\n")
	f.Add("{\"offset\": 1e3,\"length\":1}")
	f.Add("\n")
	f.Fuzz(func(t *testing.T, text string) {
		var list *rangefile.List
		var err error
		fuzztest.Document(t, len(text), func() { list, err = rangefile.Parse(strings.NewReader(text), mib) })
		if err != nil {
			return
		}
		got := extents(t, mib, list)
		var total, want int64
		end := int64(-1)
		for _, e := range got {
			require.NoError(t, e.CheckWithin(mib))
			require.Greater(t, e.Offset, end)
			end = e.End()
			total += e.Length
		}
		for line := range strings.Lines(text) {
			var e block.Extent
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			want += e.Length
		}
		require.Equal(t, want, total)
		require.Equal(t, got, extents(t, mib, parse(t, mib, got...)))
	})
}

func BenchmarkParse(b *testing.B) {
	const lines = 10000
	var text []byte
	for i := range int64(lines) {
		text = rangefile.Append(text, block.Extent{Offset: i * mib, Length: 65536})
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := rangefile.Parse(bytes.NewReader(text), lines*mib); err != nil {
			b.Fatal(err)
		}
	}
}
