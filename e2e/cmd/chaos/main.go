// Command chaos runs package chaos on the harness's cluster. `make chaos` calls it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/e2e/chaos"
	"github.com/blockmover/blockmover/e2e/kit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos: FAIL:", err)
		os.Exit(1)
	}
	fmt.Println("chaos: PASS")
}

func command() *cobra.Command {
	var o chaos.Options
	var mix string
	cmd := &cobra.Command{
		Use: "chaos", Short: "Faults at random moments of backups and restores, and a judge", Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Mix, err = chaos.ParseMix(mix); err != nil {
				return err
			}
			start := time.Now()
			return chaos.Run(cmd.Context(), kit.FromEnv(func(format string, args ...any) {
				fmt.Printf("[%6.1fs] %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
			}), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Log, "log", "chaos.jsonl", "a line of JSON for each round; a run goes on after the last one")
	flags.Uint64Var(&o.Seed, "seed", 0, "seed of the first round; 0 is the one after the last in the log")
	flags.DurationVar(&o.Duration, "duration", 30*time.Minute, "for how long rounds begin")
	flags.IntVar(&o.Rounds, "rounds", 0, "how many rounds at most; 0 is any number")
	flags.IntVar(&o.Faults, "faults", 6, "faults of a round")
	flags.StringVar(&mix, "mix", "", "which faults, with weights, such as worker=3,s3-cut; empty is all")
	flags.BoolVar(&o.KeepGoing, "keep-going", false, "go on after a round in which something was wrong")
	return cmd
}
