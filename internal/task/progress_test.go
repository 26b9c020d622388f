package task_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/task"
)

func TestLastProgress(t *testing.T) {
	line := func(p task.Progress) string {
		text, err := p.Line()
		require.NoError(t, err)
		return text + "\n"
	}
	first := task.Progress{Done: 1, Total: 3, Read: 1}
	last := task.Progress{Done: 2, Total: 3, Read: 2, Waiting: "the service"}
	for name, c := range map[string]struct {
		log  string
		want task.Progress
		ok   bool
	}{
		"nothing":        {},
		"other lines":    {log: "{\"msg\":\"Backup begins\"}\nProgress\n"},
		"one":            {log: line(first), want: first, ok: true},
		"the last one":   {log: line(first) + "text\n" + line(last) + "{\"msg\":\"x\"}\n", want: last, ok: true},
		"cut off":        {log: line(first) + line(last)[:30], want: first, ok: true},
		"cut off before": {log: line(first)[10:] + line(last), want: last, ok: true},
		"nonsense":       {log: line(first) + line(task.Progress{Done: 5, Total: 4}) + line(task.Progress{Done: -1}), want: first, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := task.LastProgress(c.log)
			require.Equal(t, c.ok, ok)
			require.Equal(t, c.want, got)
		})
	}
}

func FuzzLastProgress(f *testing.F) {
	f.Add("{\"msg\":\"Progress\",\"bytesDone\":1,\"bytesTotal\":2}\n")
	f.Fuzz(func(t *testing.T, log string) {
		var p task.Progress
		var ok bool
		fuzztest.Document(t, len(log), func() { p, ok = task.LastProgress(log) })
		if !ok {
			require.Zero(t, p)
			return
		}
		require.LessOrEqual(t, p.Done, p.Total)
		require.GreaterOrEqual(t, min(p.Done, p.Read), int64(0))
		line, err := p.Line()
		require.NoError(t, err)
		again, ok := task.LastProgress(line)
		require.True(t, ok)
		require.Equal(t, p, again)
	})
}

func TestLastReport(t *testing.T) {
	line := func(r task.Report) string {
		text, err := r.Encode()
		require.NoError(t, err)
		return task.ReportLine(text) + "\n"
	}
	report := task.Report{Version: task.Version, BytesRead: 7, SnapshotID: "a", Detail: `quo"tes and } braces`}
	progress, err := task.Progress{Done: 1, Total: 2}.Line()
	require.NoError(t, err)
	for name, c := range map[string]struct {
		log string
		ok  bool
	}{
		"nothing":            {},
		"progress":           {log: progress + "\n"},
		"the last line":      {log: progress + "\n" + line(report), ok: true},
		"a line after it":    {log: line(report) + "{\"msg\":\"x\"}\n", ok: true},
		"cut off":            {log: line(report)[:40]},
		"without its end":    {log: strings.TrimSuffix(line(report), "}\n")},
		"not a line":         {log: "text " + line(report)},
		"another version":    {log: task.ReportLine(`{"version":99}`)},
		"no report":          {log: task.ReportLine(`"text"`)},
		"a count without it": {log: task.ReportLine(`{"version":1,"bytesRead":-1}`)},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := task.LastReport(c.log)
			require.Equal(t, c.ok, ok)
			if c.ok {
				require.Equal(t, report, got)
			} else {
				require.Zero(t, got)
			}
		})
	}
	// Neither is taken for the other.
	_, ok := task.LastProgress(line(report))
	require.False(t, ok)
}

func FuzzLastReport(f *testing.F) {
	f.Add(task.ReportLine(`{"version":1,"bytesRead":5}`) + "\n")
	f.Fuzz(func(t *testing.T, log string) {
		var r task.Report
		var ok bool
		fuzztest.Document(t, len(log), func() { r, ok = task.LastReport(log) })
		if !ok {
			require.Zero(t, r)
			return
		}
		require.Equal(t, task.Version, r.Version)
		require.GreaterOrEqual(t, r.BytesRead, int64(0))
	})
}
