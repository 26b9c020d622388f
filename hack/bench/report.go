package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what the benchmark writes as JSON.
type report struct {
	Time    time.Time `json:"time"`
	Host    string    `json:"host"`
	CPUs    int       `json:"cpus"`
	Load    string    `json:"loadAtStart"`
	LoadEnd string    `json:"loadAtEnd"`
	Size    int64     `json:"size"`
	Runs    int       `json:"runs"`
	Steps   []*step   `json:"steps"`
	Ratios  []ratio   `json:"ratios"`
}

// step is one thing that was measured, once in each run.
type step struct {
	Name    string   `json:"name"`
	Samples []sample `json:"samples"`
	Median  sample   `json:"median"`
}

// ratio compares two steps. Target is empty if there is none.
type ratio struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"`
	Target string  `json:"target,omitempty"`
	Met    *bool   `json:"met,omitempty"`
}

func newReport(size int64, runs int) *report {
	host, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{Time: time.Now().UTC(), Host: strings.TrimSpace(string(host)), CPUs: runtime.NumCPU(), Load: load(), Size: size, Runs: runs}
}

// load is that of the machine. It tells how far to trust the seconds.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.TrimSpace(string(text))
}

func (r *report) step(name string) *step {
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	s := &step{Name: name}
	r.Steps = append(r.Steps, s)
	return s
}

func (r *report) add(name string, s sample) { t := r.step(name); t.Samples = append(t.Samples, s) }

// median of each number by itself.
func median[S any, T int64 | float64](samples []S, of func(S) T) T {
	if len(samples) == 0 {
		return 0
	}
	values := make([]T, 0, len(samples))
	for _, s := range samples {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func medians(samples []sample) sample {
	return sample{
		Seconds:    median(samples, func(s sample) float64 { return s.Seconds }),
		CPUSeconds: median(samples, func(s sample) float64 { return s.CPUSeconds }),
		PeakRSS:    median(samples, func(s sample) int64 { return s.PeakRSS }),
		Work:       median(samples, func(s sample) int64 { return s.Work }),
		Grew:       median(samples, func(s sample) int64 { return s.Grew }),
		Changed:    median(samples, func(s sample) int64 { return s.Changed }),
		Uploaded:   median(samples, func(s sample) int64 { return s.Uploaded }),
		Metadata:   median(samples, func(s sample) int64 { return s.Metadata }),
	}
}

// amplification is how many bytes were stored for one byte that changed.
func (s sample) amplification() float64 { return divide(float64(s.Grew), float64(s.Changed)) }

func (s sample) speed() float64 { return divide(float64(s.Work), s.Seconds) }

func divide(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

func (r *report) atMost(name string, value, limit float64, unit string) {
	met := value <= limit
	r.Ratios = append(r.Ratios, ratio{name, value, unit, fmt.Sprintf("<= %g", limit), &met})
}

func (r *report) atLeast(name string, value, limit float64) {
	met := value >= limit
	r.Ratios = append(r.Ratios, ratio{name, value, "", fmt.Sprintf(">= %g", limit), &met})
}

func (r *report) note(name string, value float64) {
	r.Ratios = append(r.Ratios, ratio{Name: name, Value: value})
}

// conclude computes medians, and the ratios that matter.
func (r *report) conclude(ratios func()) {
	r.LoadEnd = load()
	for _, s := range r.Steps {
		s.Median = medians(s.Samples)
	}
	ratios()
}

// concludeMix compares all but slow devices.
func (r *report) concludeMix() {
	m := func(name string) sample { return r.step(name).Median }

	for _, full := range []struct{ name, step string }{{"full", stepFull}, {stepPlain, stepPlain}} {
		s := m(full.step)
		r.atMost(full.name+": CPU, ours / kopia (device)", divide(s.CPUSeconds, m(stepKopiaDevice).CPUSeconds), 0.75, "")
		r.note(full.name+": CPU, ours / kopia (file)", divide(s.CPUSeconds, m(stepKopiaFile).CPUSeconds))
		r.note(full.name+": wall, ours / kopia (file)", divide(s.Seconds, m(stepKopiaFile).Seconds))
		r.atLeast(full.name+": wall, crypto alone / ours", divide(m(stepCrypto).Seconds, s.Seconds), 0.8)
		r.note(full.name+": wall, read, crypto, write / ours", divide(m(stepBare).Seconds, s.Seconds))
		r.atMost(full.name+": peak RSS", float64(s.PeakRSS)/mib, 256, "MiB")
	}
	r.note("full, zstd: CPU, ours / kopia (device)", divide(m(stepZstd).CPUSeconds, m(stepKopiaDevice).CPUSeconds))
	r.note("full, zstd: repository, ours / kopia", divide(float64(m(stepZstd).Grew), float64(m(stepKopiaFile).Grew)))
	r.note("full: repository, ours / kopia", divide(float64(m(stepFull).Grew), float64(m(stepKopiaFile).Grew)))
	r.concludeHMAC()
	r.concludeCores()
	r.atLeast("restore: speed, ours / raw write", divide(m(stepRestore).speed(), m(stepRawWrite).speed()), 3*0.09)
	r.note("restore: wall, ours / kopia", divide(m(stepRestore).Seconds, m(stepKopiaRestore).Seconds))
	r.atMost("restore: peak RSS", float64(m(stepRestore).PeakRSS)/mib, 256, "MiB")
	for _, p := range patterns {
		name := "amplification: " + p.name
		if p.limit > 0 {
			r.atMost(name, m(p.name).amplification(), p.limit, "")
		} else {
			r.note(name, m(p.name).amplification())
		}
	}
	for _, h := range hotspots {
		samples := r.step(h.name).Samples
		if len(samples) == 0 {
			continue
		}
		r.note("amplification: "+h.name+", first", samples[0].amplification())
		steady := slices.Clone(samples[len(samples)/2:])
		slices.SortFunc(steady, func(a, b sample) int {
			if a.amplification() < b.amplification() {
				return -1
			}
			return 1
		})
		r.atMost("amplification: "+h.name+", steady", steady[len(steady)/2].amplification(), h.limit, "")
	}
	r.atMost("sparse 10 TiB: metadata", float64(m(sparseSteps[0].name).Metadata)/mib, 4, "MiB")
	// 2 s of it are for everything except reading and uploading 1 GiB.
	r.note("sparse 10 TiB: wall, with its data", m(sparseSteps[0].name).Seconds)
	r.atMost("sparse 10 TiB: RSS over start-up", float64(m(sparseSteps[0].name).PeakRSS-m(stepStart).PeakRSS)/mib, 128, "MiB")
	r.atMost("sparse: metadata, 64 TiB / 10 TiB", divide(float64(m(sparseSteps[1].name).Metadata), float64(m(sparseSteps[0].name).Metadata)), 3, "")
	r.atMost("bitmap: 262,144 ranges", m(stepBitmap).Seconds*1000, 100, "ms")
}

// print writes the tables.
func (r *report) print(out io.Writer) error {
	head := fmt.Sprintf("\n%s of the mix, median of %d, %d CPUs, load %s at the start and %s at the end\n\n", formatBytes(r.Size), r.Runs, r.CPUs, r.Load, r.LoadEnd)
	if _, err := io.WriteString(out, head); err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush reports errors
	line("step\tseconds\tMB/s\tCPU s\tpeak RSS\trepository\tuploaded\tmetadata\t")
	for _, s := range r.Steps {
		m := s.Median
		line("%s\t%.3f\t%.0f\t%.2f\t%s\t%s\t%s\t%s\t", s.Name, m.Seconds, m.speed()/1e6, m.CPUSeconds,
			formatBytes(m.PeakRSS), formatBytes(m.Grew), formatBytes(m.Uploaded), formatBytes(m.Metadata))
	}
	line("")
	if err := t.Flush(); err != nil {
		return err
	}
	line("ratio\tvalue\ttarget\t\t")
	for _, q := range r.Ratios {
		verdict := ""
		if q.Met != nil {
			verdict = map[bool]string{true: "met", false: "MISSED"}[*q.Met]
		}
		line("%s\t%.2f %s\t%s\t%s\t", q.Name, q.Value, q.Unit, q.Target, verdict)
	}
	return t.Flush()
}

func (r *report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func formatBytes(n int64) string {
	switch {
	case n == 0:
		return "-"
	case n < mib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	case n < 10*gib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}
