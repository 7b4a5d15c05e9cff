from gantrain.entry import main

if __name__ == "__main__":
    main()
