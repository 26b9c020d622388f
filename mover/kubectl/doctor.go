package kubectl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// Verdict is what a check came to.
type Verdict string

// The verdicts.
const (
	// Fine needs nothing.
	Fine Verdict = "ok"
	// Worse works, but not as well as it could.
	Worse Verdict = "warning"
	// Broken does not work.
	Broken Verdict = "error"
)

// Finding is one thing that was looked at.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	// Object is what it is about.
	Object string `json:"object,omitempty"`
	What   string `json:"what"`
	// Do is what to do about it.
	Do string `json:"do,omitempty"`
}

// check looks at one thing.
type check struct {
	name string
	look func(ctx context.Context) ([]Finding, error)
}

// errDoctor is the end of a doctor that has found something broken. The table has said what.
var errDoctor = errors.New("something does not work")

func newDoctorCommand(s *session) *cobra.Command {
	var (
		format  output
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that everything that Blockmover needs is there",
		Long: "Doctor looks at the cluster and changes nothing. Each finding says what to do. It ends with an\n" +
			"error if something does not work.",
		Args: cobra.NoArgs,
		RunE: s.run(func(ctx context.Context, _ []string) error {
			if err := format.check(); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			findings := s.examine(ctx)
			rows := make([][]any, 0, len(findings))
			broken := false
			for _, f := range findings {
				rows = append(rows, []any{f.Check, string(f.Verdict), or(f.Object), f.What, or(f.Do)})
				broken = broken || f.Verdict == Broken
			}
			if err := format.print(s.Streams.Out, findings, doctorColumns, rows); err != nil {
				return err
			}
			if broken {
				return errDoctor
			}
			return nil
		}),
	}
	format.add(cmd.Flags())
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "`time` that all checks may take")
	return cmd
}

var doctorColumns = []column{{"CHECK", false}, {"RESULT", false}, {"OBJECT", false}, {"FINDING", false}, {"DO", false}}

// examine runs all checks. One that cannot look says so, and the others go on.
func (s *session) examine(ctx context.Context) []Finding {
	checks := []check{
		{"kinds of Velero", s.checkKinds},
		{"plugin and manager", s.checkParts},
		{"configuration", s.checkConfiguration},
		{"storage location", s.checkLocations},
		{"repository", s.checkRepositories},
		{"snapshot class", s.checkClasses},
		{"changed blocks", s.checkMetadataServices},
		{"mover pods", s.checkMoverPods},
		{"nodes", s.checkNodes},
		{"data movers", s.checkMovers},
	}
	all := make([]Finding, 0, len(checks))
	for _, c := range checks {
		findings, err := c.look(ctx)
		if err != nil {
			findings = append(findings, Finding{Verdict: Broken, What: fmt.Sprintf("cannot look: %v", err)})
		}
		for _, f := range findings {
			f.Check = c.name
			all = append(all, f)
		}
	}
	return all
}
